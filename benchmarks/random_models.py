"""Models of a shape with random ternary weights: packed files, and GGUF for llama.cpp.

No training model stands behind them: codes are drawn and written. Their text is noise; bytes,
operations and memory are those of a trained model of the shape.
"""

import hashlib
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trilith.files import replacing
from trilith.kernels import pack_weight
from trilith.model import ModelConfig, RMSNorm, Transformer
from trilith.packed import PackConfig
from trilith.packed.contents import TOKENIZER_TENSOR
from trilith.packed.manifest import CodesEntry, Manifest, Part, TensorEntry, describe, to_metadata
from trilith.packed.precision import store_rows
from trilith.quant import CODECS, GRIDS, QuantizedWeight

_VOCAB_SIZE = 32000
_ROPE_THETA, _NORM_EPS = 10000.0, 1e-5
TERNARY = GRIDS["ternary"]


def _shape(name: str, heads: tuple[int, int], *, tied_head: bool, **sizes: int) -> ModelConfig:
    """A Llama without extra norms, which llama.cpp runs too; heads and key/value heads."""
    rest = {"rope_theta": _ROPE_THETA, "norm_eps": _NORM_EPS, "qk_norm": False, "sub_norm": False}
    sizes |= {"num_heads": heads[0], "num_kv_heads": heads[1], "vocab_size": _VOCAB_SIZE}
    return ModelConfig(  # type: ignore[arg-type]
        name=name, mlp="swiglu", context=2048, tied_head=tied_head, **rest, **sizes
    )


SHAPES = {
    # TinyLlama (arXiv 2401.02385).
    "1.1b": _shape("1.1b", (32, 4), tied_head=False, width=2048, num_layers=22, mlp_width=5632),
    "125m": _shape("125m", (12, 12), tied_head=True, width=768, num_layers=12, mlp_width=2048),
}


def write_packed_model(config: ModelConfig, path: Path, *, pack: PackConfig) -> None:
    """Write a packed file of random ternary projections, one scale each.

    Args:
        config: shape.
        path: the file to write.
        pack: codec of the projections, by its name; precision of embedding and head.
    """
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    entries: dict[str, TensorEntry] = {}

    def add(name: str, tensor: Tensor, part: Part, codes: CodesEntry | None = None) -> None:
        tensors[name] = tensor
        entries[name] = describe(tensor, part=part, codes=codes)

    for name, module in _skeleton(config).named_modules():
        if isinstance(module, RMSNorm):
            add(f"{name}.weight", torch.ones(module.weight.shape), "norms")
        elif isinstance(module, nn.Linear) and name != "head":
            shape = (module.out_features, module.in_features)
            weight = pack_weight(_random_weight(shape), grid=TERNARY, codec=CODECS[pack.codec])
            entry = CodesEntry(TERNARY.name, pack.codec, shape, f"{name}.scale")
            add(f"{name}.codes", weight.packed, "codes", entry)
            add(f"{name}.scale", weight.scale, "scales")
    for part in ("embedding",) if config.tied_head else ("embedding", "head"):
        rows = 0.02 * torch.randn(config.vocab_size, config.width)
        stored = store_rows(rows, pack.embedding_form)
        add(f"{part}.weight", stored.values, part)  # type: ignore[arg-type]
        if stored.scale is not None:
            add(f"{part}.scale", stored.scale, part)  # type: ignore[arg-type]
    add(TOKENIZER_TENSOR, torch.zeros(1, dtype=torch.uint8), "tokenizer")
    tokenizer_hash = hashlib.sha256(b"\0").hexdigest()
    manifest = Manifest(config, 8, entries, tokenizer_hash, {}, {"weights": "random"})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial_path:
        save_file(tensors, partial_path, metadata=to_metadata(manifest))


def write_gguf(config: ModelConfig, path: Path) -> None:
    """Write the shape as GGUF in float16, with random ternary projections and no tokenizer."""
    import gguf

    torch.manual_seed(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for name, tensor in _gguf_tensors(config).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_tensors(config: ModelConfig) -> dict[str, Tensor]:
    width, mlp_width = config.width, config.mlp_width
    kv_width = config.num_kv_heads * config.head_width
    shapes = {
        "attn_q": (width, width),
        "attn_k": (kv_width, width),
        "attn_v": (kv_width, width),
        "attn_output": (width, width),
        "ffn_gate": (mlp_width, width),
        "ffn_up": (mlp_width, width),
        "ffn_down": (width, mlp_width),
    }
    tensors = {"token_embd.weight": 0.02 * torch.randn(config.vocab_size, width).half()}
    if not config.tied_head:
        tensors["output.weight"] = 0.02 * torch.randn(config.vocab_size, width).half()
    tensors["output_norm.weight"] = torch.ones(width)
    for layer in range(config.num_layers):
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{norm}.weight"] = torch.ones(width)
        for name, shape in shapes.items():
            weight = _random_weight(shape)
            values = (weight.codes.half() - 1) * weight.scale.half()
            tensors[f"blk.{layer}.{name}.weight"] = values
    return tensors


def _skeleton(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config, partial(nn.Linear, bias=False))


def _random_weight(shape: tuple[int, int]) -> QuantizedWeight:
    codes = torch.randint(0, TERNARY.num_levels, shape, dtype=torch.uint8)
    # Outputs as large as inputs: a code has a mean square of 2/3.
    return QuantizedWeight(codes, torch.full((1, 1), (1.5 / shape[1]) ** 0.5))
