"""What a packed model needs to run: its file, what kernels unpack, the KV cache, activations.

Letters as in `attention`: D width, C head width, V vocabulary; M is the width of the MLP.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trilith.kernels import RESTORED_VALUES, layout_in_memory, native_bytes
from trilith.model import (
    Bias,
    KVCache,
    ModelConfig,
    RMSNorm,
    Transformer,
    count_parameters,
    model_on_meta,
    projection_weights,
)
from trilith.packed import PackConfig, row_bytes
from trilith.quant import Codec, QuantConfig, num_scales

# How kernels hold a projection: tiles of 2 or 4 bits, float32 numbers, or the file's own bytes.
Kernel = Literal["native", "torch", "packed"]

_FLOAT32 = 4
_BFLOAT16 = 2


@dataclass(frozen=True)
class InferenceSetup:
    """All that decides how much memory a packed model takes.

    `context` counts the tokens that the cache has room for, `prompt` those that run at once;
    `kv_bits` are those of a value in the cache, see `cache_bits` for what the runtime has.
    """

    model: ModelConfig
    quant: QuantConfig | None
    pack: PackConfig
    kernel: Kernel
    context: int
    prompt: int
    batch_size: int
    kv_bits: int

    def __post_init__(self) -> None:
        for key in ("context", "prompt", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        if self.prompt > self.context:
            raise ValueError(
                f"prompt={self.prompt} is longer than context={self.context}; lower the first or "
                "raise the second"
            )


class FileBytes(NamedTuple):
    """Bytes of a packed file's tensors by part; tokenizer and manifest come on top."""

    codes: int
    scales: int
    dense: int
    embedding: int
    head: int
    norms: int
    biases: int


class InferenceMemory(NamedTuple):
    """Bytes at the peak of generation.

    Attributes:
        file: tensors of the packed file; on a CPU they are mapped.
        unpacked: what the runtime keeps beside them: kernel weights and norms.
        kv_cache: keys and values; scales of a quantized cache would come on top.
        prefill: activations of running the prompt.
        decode: activations of running one more token.
    """

    file: int
    unpacked: int
    kv_cache: int
    prefill: int
    decode: int

    @property
    def weights(self) -> int:
        return self.file + self.unpacked

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + max(self.prefill, self.decode)


def plan_inference(setup: InferenceSetup) -> InferenceMemory:
    """Plan the memory of a packed model that generates on one device."""
    model = model_on_meta(setup.model)
    with torch.device("meta"):
        kv = KVCache(setup.model, batch_size=setup.batch_size, capacity=setup.context)
    num_values = kv.keys.numel() + kv.values.numel()
    return InferenceMemory(
        file=sum(file_bytes(model, quant=setup.quant, pack=setup.pack)),
        unpacked=_unpacked_bytes(model, setup),
        kv_cache=num_values * setup.kv_bits // 8,
        prefill=_prefill_bytes(setup),
        decode=_decode_bytes(setup),
    )


def longest_context(setup: InferenceSetup, *, memory_bytes: int) -> int:
    """Longest context, with this prompt, whose plan is no larger than `memory_bytes`; 0 for none.

    The rotations of positions beyond the model's own context are left out.
    """
    one, two = (plan_inference(replace(setup, context=setup.prompt + more)) for more in (0, 1))
    kv, decode = two.kv_cache - one.kv_cache, two.decode - one.decode
    room = memory_bytes - one.weights - one.kv_cache
    more = min((room - one.prefill) // kv, (room - one.decode) // (kv + decode))
    return setup.prompt + more if more >= 0 else 0


def cache_bits(config: ModelConfig) -> int:
    """Bits of a key or value in the cache that the runtime has."""
    with torch.device("meta"):
        return 8 * KVCache(config, batch_size=1, capacity=1).keys.element_size()


def file_bytes(model: Transformer, *, quant: QuantConfig | None, pack: PackConfig) -> FileBytes:
    """Bytes that the pack stage writes for a model of this shape (meta tensors will do)."""
    codec = None if quant is None else pack.codec_for(quant.levels)
    projections = projection_weights(model)
    shape = (model.config.vocab_size, model.config.width)
    return FileBytes(
        codes=sum(_code_bytes(weight, codec) for weight in projections),
        scales=0 if quant is None else _FLOAT32 * sum(num_scales(w, quant) for w in projections),
        dense=_BFLOAT16 * sum(w.numel() for w in projections) if quant is None else 0,
        embedding=row_bytes(shape, pack.embedding_form),
        head=0 if model.config.tied_head else row_bytes(shape, pack.head_form),
        norms=_float_bytes(model, RMSNorm),
        biases=_float_bytes(model, Bias),
    )


def _float_bytes(model: Transformer, kind: type[RMSNorm | Bias]) -> int:
    modules = [module for module in model.modules() if isinstance(module, kind)]
    return _FLOAT32 * sum(module.weight.numel() for module in modules)


def _code_bytes(weight: Tensor, codec: Codec | None) -> int:
    return 0 if codec is None else codec.num_bytes(weight.numel())


def _unpacked_bytes(model: Transformer, setup: InferenceSetup) -> int:
    """Bytes beside the file; kernels that read packed bytes need none."""
    if setup.kernel == "packed":
        return 0
    rope = 2 * _FLOAT32 * setup.model.context * setup.model.head_width
    kernels = sum(_kernel_bytes(weight, setup) for weight in projection_weights(model))
    floats = _float_bytes(model, RMSNorm) + _float_bytes(model, Bias)
    return floats + kernels + (rope if _decodes_natively(setup) else 0)


def _decodes_natively(setup: InferenceSetup) -> bool:
    """True if a decoding step is one call that reads grouped keys and values where they lie."""
    is_integer = setup.quant is not None and setup.quant.activation_bits is not None
    return is_integer and setup.kernel != "torch"


def _kernel_bytes(weight: Tensor, setup: InferenceSetup) -> int:
    quant = setup.quant
    if quant is None or quant.activation_bits is None:
        return _FLOAT32 * weight.numel()
    num_out, num_in = weight.shape
    scales = num_scales(weight, quant)
    if setup.kernel == "torch":
        return _FLOAT32 * (weight.numel() + scales)
    num_groups = scales // num_out if quant.granularity == "group" else 1
    layout = layout_in_memory(
        quant.levels,
        codec=setup.pack.codec_for(quant.levels),
        num_weights=count_parameters(setup.model).projections,
        group_in=num_in // num_groups,
    )
    return native_bytes((num_out, num_in), num_groups=num_groups, layout=layout)


def _prefill_bytes(setup: InferenceSetup) -> int:
    """Activations of all prompt tokens at the widest moment of a block, rotations, logits."""
    config = setup.model
    width, keys = config.width, config.num_kv_heads * config.head_width
    is_grouped = config.num_heads > config.num_kv_heads
    # Residual, normed, projected, rotated queries and output; grouped keys and values repeated.
    attention = 5 * width + 2 * keys + (2 * width if is_grouped else 0)
    per_token = max(attention, 3 * width + _mlp_values(setup))
    rotations = 2 * config.head_width * setup.prompt
    logits = setup.batch_size * config.vocab_size
    return int(_FLOAT32 * (setup.batch_size * setup.prompt * per_token + rotations + logits))


def _mlp_values(setup: InferenceSetup) -> float:
    """float32 values of a token that an MLP holds at once beside three of the model's width."""
    config, quant = setup.model, setup.quant
    # Gate and value with the activated gate, or the one projection; then what `down` reads.
    held = (3 if config.is_gated else 1) * config.mlp_width + config.mlp_width
    if setup.kernel == "torch" and quant is not None and quant.activation_bits is not None:
        # The input as whole numbers, as int8 and as float32 again; one product, or three by groups.
        outputs = 3 if quant.granularity == "group" else 1
        return held + 2.25 * config.mlp_width + outputs * config.width
    return held + (config.mlp_width if config.sub_norm else 0)


def _decode_bytes(setup: InferenceSetup) -> int:
    """Logits; on the torch path also keys and values of a layer, repeated for all heads."""
    config = setup.model
    logits = _FLOAT32 * setup.batch_size * config.vocab_size
    if _decodes_natively(setup):
        return logits
    repeats = config.num_heads > config.num_kv_heads
    repeated = 2 * _FLOAT32 * setup.batch_size * config.width * setup.context if repeats else 0
    return logits + max(repeated, _restored_bytes(setup))


def _restored_bytes(setup: InferenceSetup) -> int:
    """A part of the head in floats, on the torch path."""
    config, pack = setup.model, setup.pack
    form = pack.embedding_form if config.tied_head else pack.head_form
    # Codes, their levels and their scales lie beside the product of these.
    copies = 3.25 if form.group_size and form.precision in ("int4", "int3") else 1
    return int(copies * _FLOAT32 * min(RESTORED_VALUES, config.vocab_size * config.width))
