"""Is there memory for a packed file? Said before its weights are read."""

from bisect import bisect_right
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trilith.hardware import OVERHEAD_BYTES, host_memory_bytes
from trilith.kernels import chosen_isa
from trilith.kernels.choice import runs_triton
from trilith.model import CacheConfig
from trilith.packed import PackConfig, PackedFile, naming, open_unchecked
from trilith.packed.precision import RowPrecision
from trilith.quant import QuantConfig
from trilith.quant.scale import Granularity
from trilith.runtime.memory import InferenceSetup, Kernel, Layers, plan_inference

_CPU = torch.device("cpu")
_PRECISIONS: dict[str, RowPrecision] = {
    "float32": "f32",
    "bfloat16": "bf16",
    "int8": "int8",
    "int4": "int4",
    "int3": "int3",
}


def require_memory(
    path: Path,
    *,
    cache: CacheConfig,
    layers: Layers,
    device: torch.device = _CPU,
    context: int | None = 1,
) -> None:
    """Refuse a model that a device cannot hold with one sequence of so many tokens.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is too large, or the file is foreign or impossible.
    """
    file = open_unchecked(path)
    with naming(path):
        setup = setup_of(file, cache=cache, layers=layers, device=device)
    require_room(path, with_context(setup, context), device=device)


def require_room(path: Path, setup: InferenceSetup, *, device: torch.device = _CPU) -> None:
    """Refuse what a device cannot hold.

    Raises:
        ValueError: it needs more memory than there is; the text says what needs less.
    """
    needed, memory = needed_bytes(setup), memory_bytes(device)
    if needed > memory:
        kept = f" and {setup.kept} kept caches" if setup.kept else ""
        raise ValueError(
            f"{path} needs {needed / 1e9:,.2f} GB with {_sequences(setup)}{kept}, and "
            f"{'this machine' if device.type == 'cpu' else device} has {memory / 1e9:,.2f} GB; "
            f"{_advice(setup, memory)}"
        )


def with_context(setup: InferenceSetup, context: int | None) -> InferenceSetup:
    """Plan for sequences of so many tokens, None for the model's own, prompts as long as these."""
    own = setup.model.context
    context = own if context is None else max(1, context)
    if setup.cache.window is None:
        # More tokens are refused where they are asked for, with better words.
        context = min(context, own)
    return replace(setup, context=context, prompt=context)


def needed_bytes(setup: InferenceSetup) -> int:
    """Bytes that must be in memory.

    On a CPU the file is mapped, and what of it does not fit is read again. Activations on a GPU
    were never measured: there weights and caches alone must fit.
    """
    plan = plan_inference(setup)
    if setup.kernel == "triton":
        return plan.weights + plan.kv_cache + OVERHEAD_BYTES["cuda"]
    return plan.total - plan.file + OVERHEAD_BYTES["cpu"]


def memory_bytes(device: torch.device) -> int:
    """Bytes of memory that this machine, or a GPU of it, has."""
    if device.type == "cpu":
        return host_memory_bytes()
    return torch.cuda.get_device_properties(device).total_memory


def _sequences(setup: InferenceSetup) -> str:
    tokens = "a single token" if setup.context == 1 else f"{setup.context:,} tokens"
    return tokens if setup.running == 1 else f"{setup.running} times {tokens}"


def _advice(setup: InferenceSetup, memory: int) -> str:
    """All single changes that suffice."""
    changes: dict[str, dict[str, Any]] = {}
    if setup.kernel != "triton":
        changes["stream its layers (--stream-layers)"] = {"layers": "streamed"}
        for bits in (8, 4):
            smaller = replace(setup.cache, bits=min(setup.cache.bits, bits))
            changes[f"keep caches of {bits} bits (--cache-bits {bits})"] = {"cache": smaller}
    if setup.kept:
        changes["keep no caches (--kept-caches 0)"] = {"kept": 0}
    if setup.running > 1:
        changes["run one at a time (--running 1)"] = {"running": 1}
    needed = {
        name: needed_bytes(replace(setup, **change))
        for name, change in changes.items()
        if replace(setup, **change) != setup
    }
    fitting = [f"{n}, which needs {b / 1e9:,.2f} GB" for n, b in needed.items() if b <= memory]
    if most := _most_tokens(setup, memory):
        fitting.append(f"ask for at most {most:,} tokens")
    return ", or ".join(fitting) or "take a smaller model, or a machine with more memory"


def _most_tokens(setup: InferenceSetup, memory: int) -> int:
    """The longest context that fits, if fewer tokens are any help; else 0."""

    def needed(context: int) -> int:
        return needed_bytes(replace(setup, context=context, prompt=context))

    return bisect_right(range(1, setup.context), memory, key=needed)


def setup_of(
    file: PackedFile, *, cache: CacheConfig, layers: Layers, device: torch.device = _CPU
) -> InferenceSetup:
    """What a packed file says of the memory it needs, with one token of prompt and of context."""
    entries = [e.codes for e in file.manifest.tensors.values() if e.codes is not None]
    quant = None
    codec = "smallest"
    if entries:
        first = entries[0]
        num_out, num_in = first.shape
        scale_rows, num_groups = file.tensors[first.scale].shape
        group_size = num_in // num_groups if num_groups > 1 else None
        granularity: Granularity = (
            "group" if group_size else "row" if scale_rows == num_out else "tensor"
        )
        bits = file.manifest.activation_bits
        quant = QuantConfig(first.grid, "least_squares", granularity, group_size, bits)
        codec = first.codec
    return InferenceSetup(
        model=file.manifest.model,
        quant=quant,
        pack=_pack_of(file, codec),
        kernel=kernel_on(device),
        context=1,
        prompt=1,
        batch_size=1,
        cache=cache,
        layers=layers,
    )


def kernel_on(device: torch.device) -> Kernel:
    """The kernels that run on a device of this machine."""
    if device.type != "cpu":
        return "triton" if runs_triton(device) else "torch"
    return "torch" if chosen_isa() is None else "native"


def _pack_of(file: PackedFile, codec: str) -> PackConfig:
    try:
        embedding, head = file.stored_rows("embedding"), file.stored_head()
    except ValueError:
        # Damage is for reading to report.
        return PackConfig(codec, "int8")
    groups = [
        rows.width // rows.scale.shape[1]
        for rows in (embedding, head)
        if rows.scale is not None and rows.kind in ("int4", "int3")
    ]
    forms = {"embedding": _PRECISIONS[embedding.kind], "head": _PRECISIONS[head.kind]}
    return PackConfig(codec, **forms, group_size=groups[0] if groups else None)
