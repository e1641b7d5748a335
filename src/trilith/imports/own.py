"""Trilith's own models as sources: a checkpoint folder, or a packed file, its weights unpacked."""

from functools import partial
from pathlib import Path

from trilith.files import sha256
from trilith.imports.source import Source, State
from trilith.model import Checkpoint, load_checkpoint
from trilith.packed import PackedFile, read_packed
from trilith.quant import QuantConfig, dequantize


def open_checkpoint(folder: Path, *, tokenizer: Path | None = None) -> Source:
    """Open a checkpoint folder, as `pretrain`, `evolve` and `trilith import` write it.

    Args:
        folder: the checkpoint.
        tokenizer: its `tokenizer.model`; None takes the one in the folder, if there is one.

    Raises:
        ValueError: the checkpoint is damaged, or the tokenizer is not the one it knows.
    """
    checkpoint = load_checkpoint(folder, made_by="pretrain, evolve or trilith import")
    beside = tokenizer or folder / "tokenizer.model"
    if beside.is_file() and sha256(beside) != checkpoint.tokenizer_sha256:
        raise ValueError(
            f"{folder} was trained with another tokenizer (SHA-256 "
            f"{checkpoint.tokenizer_sha256[:12]}) than {beside}; give its own with --tokenizer"
        )
    return Source(
        kind="Trilith checkpoint",
        is_own=True,
        path=folder,
        model=checkpoint.model.config,
        quant=checkpoint.quant,
        stored="float32",
        weight_files=(folder / "model.safetensors",),
        tokenizer=beside.read_bytes() if beside.is_file() else None,
        tokenizer_sha256=checkpoint.tokenizer_sha256,
        provenance=checkpoint.provenance,
        licence=None,
        read=partial(_state_of, checkpoint),
    )


def open_packed(path: Path) -> Source:
    """Open a packed file; its latent weights are what its codes and scales say.

    Raises:
        ValueError: it is damaged, or mixes grids as no checkpoint of ours does.
    """
    file = read_packed(path)
    return Source(
        kind="packed",
        is_own=True,
        path=path,
        model=file.manifest.model,
        quant=_quant_of(file),
        stored=", ".join(sorted({e.codes.codec for e in file.manifest.tensors.values() if e.codes}))
        or "bfloat16",
        weight_files=(path,),
        tokenizer=file.tokenizer_bytes,
        tokenizer_sha256=file.manifest.tokenizer_sha256,
        provenance=file.manifest.provenance,
        licence=None,
        read=partial(_unpacked, file),
    )


def _state_of(checkpoint: Checkpoint) -> State:
    return dict(checkpoint.model.state_dict())


def _quant_of(file: PackedFile) -> QuantConfig | None:
    """The quantization that keeps each stored scale as it is; None for a dense model."""
    found = set()
    for entry in file.manifest.tensors.values():
        if entry.codes is None:
            continue
        num_rows, num_groups = file.tensors[entry.codes.scale].shape
        group_size = None if num_groups == 1 else entry.codes.shape[1] // num_groups
        granularity = "group" if group_size else "row" if num_rows > 1 else "tensor"
        found.add((entry.codes.grid, granularity, group_size))
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            f"{file.path} mixes {len(found)} grids or kinds of scales, which a checkpoint cannot "
            "hold; start from the checkpoint that it was packed from"
        )
    ((grid, granularity, group_size),) = found
    bits = file.manifest.activation_bits
    return QuantConfig(grid, "least_squares", granularity, group_size, bits)  # type: ignore[arg-type]


def _unpacked(file: PackedFile) -> State:
    state: State = {}
    for name, entry in file.manifest.tensors.items():
        tensor = file.tensors[name]
        if entry.codes is not None:
            module = name.removesuffix(".codes")
            weight = file.packed_weight(module)
            state[f"{module}.weight"] = dequantize(weight.codes(), weight.scale, weight.grid)
            state[f"{module}.scale"] = weight.scale.clone()
        elif entry.part in ("dense", "norms", "biases"):
            state[name] = tensor.float().clone()
    state["embedding.weight"] = file.stored_rows("embedding").restore()
    if not file.manifest.model.tied_head:
        state["head.weight"] = file.stored_head().restore()
    return state
