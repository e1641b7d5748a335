"""Is there memory for a packed file? Said before its weights are read."""

from pathlib import Path

from trilith.hardware import OVERHEAD_BYTES, host_memory_bytes
from trilith.kernels import chosen_isa
from trilith.model import CacheConfig
from trilith.packed import PackConfig, PackedFile, naming, open_unchecked
from trilith.quant import QuantConfig
from trilith.quant.scale import Granularity
from trilith.runtime.memory import InferenceSetup, Layers, plan_inference


def require_memory(path: Path, *, cache: CacheConfig, layers: Layers) -> None:
    """Refuse a model that this machine cannot hold, with a short prompt.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is too large, or the file is foreign or impossible.
    """
    file = open_unchecked(path)
    memory = host_memory_bytes()
    with naming(file.path):
        needed = _bytes(file, cache, layers)
        if needed <= memory:
            return
        streamed = _bytes(file, cache, "streamed")
    if layers == "held" and streamed <= memory:
        advice = f"stream its layers (--stream-layers), which needs {streamed / 1e9:,.2f} GB"
    else:
        advice = "take a smaller model, or a machine with more memory"
    raise ValueError(
        f"{path} needs {needed / 1e9:,.2f} GB with a single token, and this machine has "
        f"{memory / 1e9:,.2f} GB; {advice}"
    )


def setup_of(file: PackedFile, *, cache: CacheConfig, layers: Layers) -> InferenceSetup:
    """What a packed file says of the memory beside it, with one token of prompt and of context."""
    entries = [e.codes for e in file.manifest.tensors.values() if e.codes is not None]
    quant = None
    # Embedding and head are no concern: they are a part of the file.
    pack = PackConfig("smallest", "int8")
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
        pack = PackConfig(first.codec, "int8")
    return InferenceSetup(
        model=file.manifest.model,
        quant=quant,
        pack=pack,
        kernel="torch" if chosen_isa() is None else "native",
        context=1,
        prompt=1,
        batch_size=1,
        cache=cache,
        layers=layers,
    )


def _bytes(file: PackedFile, cache: CacheConfig, layers: Layers) -> int:
    plan = plan_inference(setup_of(file, cache=cache, layers=layers))
    # The file is mapped: what of it does not fit is read again.
    return plan.total - plan.file + OVERHEAD_BYTES["cpu"]
