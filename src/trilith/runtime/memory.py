"""What a packed model needs to run: its file, what kernels unpack, KV caches, activations.

Letters as in `attention`: D width, C head width, V vocabulary; M is the width of the MLP.
"""

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trilith.kernels import RESTORED_VALUES, chosen_isa, layout_in_memory, native_bytes
from trilith.kernels.gpu_layout import gpu_layouts_for, group_bytes
from trilith.model import (
    Bias,
    CacheConfig,
    KVCache,
    ModelConfig,
    RMSNorm,
    Transformer,
    count_parameters,
    model_on_meta,
    projection_weights,
)
from trilith.model.cache import READ_TOKENS
from trilith.model.cache_storage import KEY_BLOCK
from trilith.packed import PackConfig, row_bytes
from trilith.quant import Codec, QuantConfig, num_scales

# How kernels hold a projection: tiles of 2 or 4 bits, float32 numbers, or the codes of a GPU.
Kernel = Literal["native", "torch", "triton"]
# All blocks ready to run, or one that runs and the next one.
Layers = Literal["held", "streamed"]

# Tokens of a prompt that run at once.
PREFILL_TOKENS = 512
# Those that `generate` runs at once where layers are held: the grain in which caches are kept,
# whole blocks of a quantized cache.
PART_TOKENS = 64

_FLOAT32 = 4
_BFLOAT16 = 2
# Tokens that no context has.
_LONGEST = 2**32


@dataclass(frozen=True)
class InferenceSetup:
    """All that decides how much memory a packed model takes.

    `context` counts the tokens of prompt and answer, `prompt` those of the first, which runs in
    parts of `PREFILL_TOKENS`, on a GPU (the kernel `triton`) as a whole. `running` caches of
    `batch_size` sequences each are decoded together, and `kept` more are held for later prompts.
    Where layers are streamed, two blocks are unpacked at once.
    """

    model: ModelConfig
    quant: QuantConfig | None
    pack: PackConfig
    kernel: Kernel
    context: int
    prompt: int
    batch_size: int
    cache: CacheConfig = field(default_factory=CacheConfig)
    layers: Layers = "held"
    running: int = 1
    kept: int = 0

    def __post_init__(self) -> None:
        for key, least in [("context", 1), ("prompt", 1), ("batch_size", 1), ("running", 1)]:
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {least}")
        if self.kept < 0:
            raise ValueError(f"kept={self.kept} must not be negative")
        if self.layers not in ("held", "streamed"):
            raise ValueError(f"layers={self.layers!r} is not known; choose held or streamed")
        if self.prompt > self.context:
            raise ValueError(
                f"prompt={self.prompt} is longer than context={self.context}; lower the first or "
                "raise the second"
            )
        if self.kernel == "triton":
            self._require_gpu_can()

    def _require_gpu_can(self) -> None:
        if (self.cache.bits, self.cache.window) != (32, None):
            raise ValueError(
                f"cache_bits={self.cache.bits} and window={self.cache.window} do not run on a GPU: "
                "caches there are float32 and keep all tokens; leave both out, or use the CPU"
            )
        if self.layers == "streamed" or self.kept:
            raise ValueError(
                f"layers={self.layers} and kept={self.kept} have no effect on a GPU: it holds all "
                "layers and keeps no caches; leave both out, or use the CPU"
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
        file: tensors of the packed file; on a CPU they are mapped, on a GPU they are not there.
        unpacked: what the runtime keeps beside them: kernel weights and norms; on a GPU also
            embedding and head, in float32.
        kv_cache: keys and values of all that run, with the scales of a quantized cache.
        kept: those of caches that are kept for later prompts.
        prefill: activations of running the prompt.
        decode: activations of running one more token.
    """

    file: int
    unpacked: int
    kv_cache: int
    kept: int
    prefill: int
    decode: int

    @property
    def weights(self) -> int:
        return self.file + self.unpacked

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.kept + max(self.prefill, self.decode)


def plan_inference(setup: InferenceSetup) -> InferenceMemory:
    """Plan the memory of a packed model that generates on one device."""
    model = model_on_meta(setup.model)
    is_on_gpu = setup.kernel == "triton"
    return InferenceMemory(
        file=0 if is_on_gpu else sum(file_bytes(model, quant=setup.quant, pack=setup.pack)),
        unpacked=_unpacked_bytes(model, setup),
        kv_cache=_running_bytes(setup),
        kept=kept_bytes(setup),
        prefill=_prefill_bytes(setup),
        decode=_decode_bytes(setup),
    )


def longest_context(setup: InferenceSetup, *, memory_bytes: int) -> int:
    """Longest context, with this prompt, whose plan is no larger than `memory_bytes`; 0 for none.

    The rotations of positions beyond the model's own context are left out.
    """
    plan = plan_inference(replace(setup, context=setup.prompt))
    room = memory_bytes - plan.weights

    def needed(context: int) -> int:
        wanted = replace(setup, context=context)
        caches = _running_bytes(wanted) + kept_bytes(wanted)
        return caches + max(_prefill_bytes(wanted), _decode_bytes(wanted))

    num_fitting = bisect_right(range(setup.prompt, _LONGEST), room, key=needed)
    return setup.prompt + num_fitting - 1 if num_fitting else 0


def cache_bytes(model: ModelConfig, *, batch_size: int, capacity: int, config: CacheConfig) -> int:
    """Bytes of one KV cache with room for so many tokens."""
    with torch.device("meta"):
        cache = KVCache(model, batch_size=batch_size, capacity=capacity, config=config)
    return cache.nbytes


def kept_bytes(setup: InferenceSetup) -> int:
    """Bytes of all kept caches, at their largest: a context, or its whole parts."""
    grain = PART_TOKENS if setup.layers == "held" else PREFILL_TOKENS
    if _is_native(setup):
        grain = 1
    return setup.kept * _cache_bytes(setup, capacity=setup.context // grain * grain)


def _running_bytes(setup: InferenceSetup) -> int:
    return setup.running * _cache_bytes(setup, capacity=setup.context)


def _cache_bytes(setup: InferenceSetup, *, capacity: int) -> int:
    return cache_bytes(
        setup.model, batch_size=setup.batch_size, capacity=capacity, config=setup.cache
    )


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
    """Bytes beside the file."""
    rope = 2 * _FLOAT32 * setup.model.context * setup.model.head_width
    kernels = sum(_kernel_bytes(weight, setup) for weight in projection_weights(model))
    if setup.layers == "streamed":
        kernels = kernels * min(2, setup.model.num_layers) // setup.model.num_layers
    floats = _float_bytes(model, RMSNorm) + _float_bytes(model, Bias)
    if setup.kernel == "triton":
        num_tables = 1 if setup.model.tied_head else 2
        floats += _FLOAT32 * num_tables * setup.model.vocab_size * setup.model.width
    return floats + kernels + (rope if _decodes_natively(setup) else 0)


def _decodes_natively(setup: InferenceSetup) -> bool:
    """True if a decoding step is one call that reads grouped keys and values where they lie."""
    is_dense = setup.quant is None and setup.kernel == "native" and setup.layers == "held"
    return is_dense or _is_native(setup)


def _is_native(setup: InferenceSetup) -> bool:
    """True if prompts run in such calls too."""
    is_integer = setup.quant is not None and setup.quant.activation_bits is not None
    return is_integer and setup.kernel == "native" and setup.layers == "held"


def _kernel_bytes(weight: Tensor, setup: InferenceSetup) -> int:
    quant = setup.quant
    if quant is None or quant.activation_bits is None:
        return _FLOAT32 * weight.numel()
    num_out, num_in = weight.shape
    scales = num_scales(weight, quant)
    num_groups = scales // num_out if quant.granularity == "group" else 1
    gpu_layouts = gpu_layouts_for(quant.levels)
    if setup.kernel == "triton" and gpu_layouts:
        row = num_groups * group_bytes(num_in // num_groups, gpu_layouts[0])
        return num_out * row + _FLOAT32 * scales
    if setup.kernel != "native":
        return _FLOAT32 * (weight.numel() + scales)
    layout = layout_in_memory(
        quant.levels,
        isa=chosen_isa(),
        codec=setup.pack.codec_for(quant.levels),
        num_weights=count_parameters(setup.model).projections,
        group_in=num_in // num_groups,
    )
    return native_bytes((num_out, num_in), num_groups=num_groups, layout=layout)


def _native_bytes(setup: InferenceSetup, *, num_tokens: int) -> int:
    """Room, ids and logits of one call into the native kernels, as forward.c counts them."""
    config = setup.model
    num_kv_heads, width, head_width = config.num_kv_heads, config.width, config.head_width
    projected = width + 2 * num_kv_heads * head_width
    hidden = (2 if config.is_gated else 1) * config.mlp_width
    row = width + max(width, config.mlp_width) + max(projected, hidden)
    repeats = config.num_heads // num_kv_heads
    # Queries twice, a tile of keys and of values, scores and what is known of each query.
    queries, tile = 2 * KEY_BLOCK * repeats * head_width, (2 * KEY_BLOCK + 2) * head_width
    worker = queries + tile + KEY_BLOCK * repeats * (KEY_BLOCK + 2)
    ids, logits = 2 * setup.batch_size * num_tokens, setup.batch_size * config.vocab_size
    rows = setup.batch_size * num_tokens * row
    return _FLOAT32 * (rows + torch.get_num_threads() * worker + ids + logits)


def _prefill_bytes(setup: InferenceSetup) -> int:
    """Activations of a part of the prompt at the widest moment of a block, rotations, logits."""
    is_on_gpu = setup.kernel == "triton"
    num_tokens = setup.prompt if is_on_gpu else min(setup.prompt, PREFILL_TOKENS)
    if _is_native(setup):
        return _native_bytes(setup, num_tokens=num_tokens)
    config = setup.model
    width, keys = config.width, config.num_kv_heads * config.head_width
    is_grouped = config.num_heads > config.num_kv_heads
    # Residual, normed, projected, rotated queries and keys, output.
    attention = 5 * width + 3 * keys
    per_token = max(attention + (2 * width if is_grouped else 0), 3 * width + _mlp_values(setup))
    past = 0
    if setup.prompt > num_tokens:
        # Queries in groups, and the output of some earlier tokens.
        per_token = max(per_token, attention + (2 if is_grouped else 1) * width)
        past = _past_values(setup)
    rotations = 2 * config.head_width * num_tokens
    logits = setup.batch_size * config.vocab_size
    values = setup.batch_size * (num_tokens * per_token + past) + rotations + logits
    return int(_FLOAT32 * (values + _factor_values(setup))) + _mask_bytes(setup)


def _mask_bytes(setup: InferenceSetup) -> int:
    """On a GPU, which tokens see which of a cache's places: truth values, and floats of them."""
    if setup.kernel != "triton":
        return 0
    repeats = setup.model.num_heads // setup.model.num_kv_heads
    return setup.prompt * setup.context * (1 + repeats * (1 + _FLOAT32))


def _past_values(setup: InferenceSetup) -> int:
    """float32 values of what is read at once of a cache that holds none: keys, then values."""
    config = setup.model
    read = min(READ_TOKENS, setup.context) * config.num_kv_heads * config.head_width
    return 0 if setup.cache.bits == 32 else 4 * read if setup.cache.bits < 16 else 2 * read


def _mlp_values(setup: InferenceSetup) -> float:
    """float32 values of a token that an MLP holds at once beside three of the model's width."""
    config, quant = setup.model, setup.quant
    # Gate and value with the activated gate, or the one projection; then what `down` reads.
    held = (3 if config.is_gated else 1) * config.mlp_width + config.mlp_width
    if setup.kernel == "torch" and quant is not None and quant.activation_bits is not None:
        # The input as whole numbers, as int8 and as float32 again; one product, or three by groups.
        outputs = 3 if quant.granularity == "group" else 1
        return held + 2.25 * config.mlp_width + outputs * config.width
    # Beside them its norm, or what was not yet squared.
    return held + (config.mlp_width if config.sub_norm or not config.is_gated else 0)


def _factor_values(setup: InferenceSetup) -> int:
    """Scales of `down` over the grid's denominator: the torch path divides them at each product."""
    config, quant = setup.model, setup.quant
    if setup.kernel != "torch" or quant is None or quant.activation_bits is None:
        return 0
    num_groups = config.mlp_width // quant.group_size if quant.group_size else 1
    return num_groups * (1 if quant.granularity == "tensor" else config.width)


def _decode_bytes(setup: InferenceSetup) -> int:
    """Logits; on the torch path one token's activations, and what is read of the cache."""
    config = setup.model
    if _decodes_natively(setup):
        return _native_bytes(
            replace(setup, batch_size=setup.batch_size * setup.running), num_tokens=1
        )
    logits = _FLOAT32 * config.vocab_size * setup.batch_size
    # Caches take their turns there, and their logits are put together.
    others = 2 * logits * setup.running if setup.running > 1 else 0
    keys = config.num_kv_heads * config.head_width
    # Where queries share keys, they are laid in groups, and the own key is repeated.
    attention = (7 if config.num_heads > config.num_kv_heads else 5) * config.width + 3 * keys
    per_token = max(attention, 3 * config.width + _mlp_values(setup))
    values = setup.batch_size * (per_token + _past_values(setup)) + 2 * config.head_width
    values += _factor_values(setup)
    restored = 0 if setup.kernel == "triton" else _restored_bytes(setup)
    return others + max(logits + restored, int(_FLOAT32 * values))


def _restored_bytes(setup: InferenceSetup) -> int:
    """A part of the head in floats, on the torch path."""
    config, pack = setup.model, setup.pack
    form = pack.embedding_form if config.tied_head else pack.head_form
    # Codes, their levels and their scales lie beside the product of these.
    copies = 3.25 if form.group_size and form.precision in ("int4", "int3") else 1
    return int(copies * _FLOAT32 * min(RESTORED_VALUES, config.vocab_size * config.width))
