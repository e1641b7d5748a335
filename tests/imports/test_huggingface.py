"""A Hugging Face folder computes what the architecture says, or is refused before any work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.imports.making import drawn, sentencepiece_model, write_huggingface
from tests.imports.plain_llama import logits

from trilith.imports import open_source
from trilith.quant import QuantConfig, dequantized_weight

IDS = [1, 270, 5, 299, 33, 260, 260, 7]
BITNET = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "offline",
    "modules_to_not_convert": None,
}
# float32 against float64: logits of about 10 agree to some units of the last place.
CLOSE = 2e-4


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tied_head": True}, {"num_kv_heads": 6, "rope_theta": 5e5}, {"num_kv_heads": 1}],
    ids=str,
)
def test_an_imported_model_computes_what_llama_does(
    tmp_path: Path, changes: dict[str, Any], num_shards: int
) -> None:
    shape, weights = drawn(**changes)
    folder = write_huggingface(tmp_path / "small", weights, shape=shape, num_shards=num_shards)
    source = open_source(folder)
    assert source.model == shape
    found = source.load().model(torch.tensor([IDS, IDS[::-1]]))
    expected = torch.stack([logits(weights, shape, ids, "halves") for ids in (IDS, IDS[::-1])])
    assert (found.double() - expected).abs().max() < CLOSE
    assert expected.abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    shape, weights = drawn()
    rounded = {name: tensor.to(dtype) for name, tensor in weights.items()}
    source = open_source(write_huggingface(tmp_path / "small", rounded, shape=shape))
    assert source.stored == str(dtype).removeprefix("torch.")
    embedding = source.load().model.embedding.weight
    assert torch.equal(embedding, rounded["embed_tokens"].float())


def test_what_transformers_writes_computes_what_transformers_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `export` is not installed")
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_theta=500_000.0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(tmp_path / "small", max_shard_size="10KB")
    (tmp_path / "small/tokenizer.model").write_bytes(sentencepiece_model())
    # Read again: the angles of RoPE of a model that was cast stay rounded.
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32)
    found = open_source(tmp_path / "small").load().model(torch.tensor([IDS]))
    assert (found - model(torch.tensor([IDS])).logits).abs().max() < CLOSE


def test_the_tokenizer_is_the_folders_own(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path / "small", drawn()[1])
    source = open_source(folder)
    assert source.tokenizer == (folder / "tokenizer.model").read_bytes()


def test_a_licence_is_found_in_the_model_card_or_its_file(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path / "small", drawn()[1])
    assert open_source(folder).licence is None
    (folder / "LICENSE").write_text("\n  Some Licence 1.0\nmore\n")
    assert open_source(folder).licence == "LICENSE: Some Licence 1.0"
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Small\n")
    assert open_source(folder).licence == "README.md: apache-2.0"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not known"),
        ({"architectures": None}, "names no `architectures`"),
        ({"architectures": ["Qwen2ForCausalLM"]}, r"lacks the tensors .*\.k_proj\.bias"),
        ({"attention_bias": True}, r"lacks the tensors model\.layers\.0\.self_attn\.k_proj\.bias"),
        ({"mlp_bias": True}, "mlp_bias=True of LlamaForCausalLM cannot be held exactly: our MLPs"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "RoPE scaling 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE scaling 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "RoPE scaling 'yarn'"),
        ({"head_dim": 8}, "head_dim=8, and our heads share the width"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not read"),
        ({"quantization_config": BITNET | {"quantization_mode": "online"}}, "are not read"),
        ({"quantization_config": BITNET | {"use_rms_norm": True}}, "are not read"),
        ({"quantization_config": BITNET}, r"lacks the tensors .*\.weight_scale"),
        ({"architectures": ["MistralForCausalLM"]}, "sliding_window=4096"),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 32,
            },
            "sliding_window=32 of Qwen2ForCausalLM",
        ),
        ({"num_hidden_layers": 4}, "lacks the tensors model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 2}, "holds the unknown tensors model.layers.2."),
        ({"intermediate_size": 48}, r"gate_proj.weight as F32 \[40, 24\], expected"),
        ({"vocab_size": 320}, r"embed_tokens.weight as F32 \[300, 24\]"),
        ({"hidden_size": None}, "config.json lacks or garbles"),
    ],
    ids=str,
)
def test_what_cannot_be_held_exactly_is_refused(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    folder = write_huggingface(tmp_path / "small", drawn()[1], **changes)
    with pytest.raises(ValueError, match=text):
        open_source(folder)


def test_biases_that_the_config_denies_are_refused(tmp_path: Path) -> None:
    folder = write_huggingface(tmp_path / "small", drawn()[1])
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(24)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds the unknown tensors model\.layers\.1\..*bias"):
        open_source(folder)


def test_tinyllamas_own_config_is_read(tmp_path: Path) -> None:
    """The config.json of TinyLlama-1.1B, with smaller numbers of its sizes."""
    shape, weights = drawn()
    folder = write_huggingface(tmp_path / "small", weights, shape=shape)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 24,
        "initializer_range": 0.02,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.35.0",
        "use_cache": True,
        "vocab_size": 300,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    source = open_source(folder)
    assert source.model == shape
    assert source.tokenizer == (folder / "tokenizer.model").read_bytes()


def _drop_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


def _leave_pickle(folder: Path) -> None:
    _drop_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")


def _drop_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def _cut_shard(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _empty_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()


def _tokenizer_json(folder: Path) -> None:
    _no_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")


def _other_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(310))


def _damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"nonsense")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_drop_weights, "has no weights: neither model.safetensors nor"),
        (_leave_pickle, "pytorch_model.bin is not read: convert it"),
        (_drop_shard, "lacks 1 of 3 shards: model-00002-of-00003.safetensors"),
        (_cut_shard, "model-00002-of-00003.safetensors is no safetensors file, or is cut"),
        (_empty_index, "index.json has no weight_map"),
        (_no_tokenizer, "neither tokenizer.model nor tokenizer.json; give the model's tokenizer"),
        (_tokenizer_json, "tokenizer.json is no tokenizer.json with a vocabulary, or is damaged"),
        (_other_tokenizer, "the embedding has 300 rows and the tokenizer 310 ids"),
        (_damaged_tokenizer, "is damaged"),
        (_no_config, "holds no config.json"),
    ],
)
def test_a_broken_folder_is_refused_and_the_error_names_the_file(
    tmp_path: Path, damage: Callable[[Path], None], text: str
) -> None:
    folder = write_huggingface(tmp_path / "small", drawn()[1], num_shards=3)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        open_source(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_another_dtype_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_huggingface(tmp_path / "small", drawn()[1])
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"up_proj.weight as \w+ .*, expected F32, BF16, F16"):
        open_source(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    shape, weights = drawn()
    weights["1.o_proj"][3, 4] = value
    source = open_source(write_huggingface(tmp_path / "small", weights, shape=shape))
    with pytest.raises(ValueError, match=r"not finite, in our blocks\.1\.attention\.out\.weight"):
        source.load()


def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path: Path) -> None:
    shape, weights = drawn(tied_head=True)
    stored = weights | {"lm_head": weights["embed_tokens"].clone()}
    same = write_huggingface(tmp_path / "same", stored, shape=shape)
    assert open_source(same).load().model.config.tied_head
    other = Path(shutil.copytree(same, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ValueError, match=r"another lm_head\.weight"):
        open_source(other).load()


def _as_bitnet(folder: Path, *, lower: bool = False) -> dict[str, torch.Tensor]:
    """Rewrite the projections as BitNet b1.58 publishes them; return all weights in floats."""
    torch.manual_seed(3)
    tensors = load_file(folder / "model.safetensors")
    floats = dict(tensors)
    for name, weight in list(tensors.items()):
        if not name.endswith("_proj.weight"):
            continue
        values = torch.randint(-1, 2, weight.shape)
        scale = torch.rand(1) + 0.5
        quarter = len(values) // 4
        rows = [values[quarter * place : quarter * (place + 1)] + 1 for place in range(4)]
        tensors[name] = sum(4**place * part for place, part in enumerate(rows)).to(torch.uint8)
        tensors[f"{name}_scale"] = scale.to(torch.bfloat16) if lower else scale
        floats[name] = values * tensors[f"{name}_scale"].float()
    save_file(tensors, folder / "model.safetensors")
    return floats


@pytest.mark.parametrize("lower", [False, True], ids=["float32", "bfloat16 scales"])
def test_ternary_weights_with_a_scale_each_are_read_as_bitnet_writes_them(
    tmp_path: Path, lower: bool
) -> None:
    shape, weights = drawn()
    folder = write_huggingface(tmp_path / "small", weights, shape=shape, quantization_config=BITNET)
    floats = _as_bitnet(folder, lower=lower)
    source = open_source(folder)
    # Queries, keys and values are one projection here, and their scales differ.
    assert source.quant == QuantConfig("ternary", "least_squares", "row", None, 8)
    block = source.load().model.blocks[2]
    names = [f"model.layers.2.self_attn.{name}_proj.weight" for name in "qkv"]
    found = dequantized_weight(block.attention.qkv)
    assert torch.equal(found, torch.cat([floats[name] for name in names]))
    expected = floats["model.layers.2.mlp.down_proj.weight"]
    assert torch.equal(dequantized_weight(block.mlp.down), expected)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda scale: scale * 0, "expected positive ones"),
        (lambda scale: scale * torch.nan, "expected positive ones"),
        (lambda scale: scale.expand(2).contiguous(), r"weight_scale as F32 \[2\]"),
    ],
    ids=["zero", "nan", "two"],
)
def test_a_scale_that_is_none_is_refused(tmp_path: Path, change: Any, text: str) -> None:
    shape, weights = drawn()
    folder = write_huggingface(tmp_path / "small", weights, shape=shape, quantization_config=BITNET)
    _as_bitnet(folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    save_file(tensors | {name: change(tensors[name])}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=text):
        open_source(folder)


def test_a_code_that_is_none_is_refused(tmp_path: Path) -> None:
    shape, weights = drawn()
    folder = write_huggingface(tmp_path / "small", weights, shape=shape, quantization_config=BITNET)
    _as_bitnet(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] |= 3
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"not finite, in our blocks\.1\.mlp\.up\.weight"):
        open_source(folder).load()
