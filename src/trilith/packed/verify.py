"""All that is wrong with a packed file, where the reader stops at the first."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trilith.packed.load import build_packed_model
from trilith.packed.manifest import Part
from trilith.packed.read import PackedFile, open_unchecked, problems_of


class TensorCheck(NamedTuple):
    """One tensor of the manifest; `is_whole` if it is there as the manifest says."""

    name: str
    part: Part
    is_whole: bool


@dataclass(frozen=True)
class Verification:
    """What was found; `tensors` is empty where the manifest itself cannot be believed."""

    tensors: list[TensorCheck]
    problems: list[str]


def verify_packed(path: Path) -> Verification:
    """Recompute every hash, compare all with the manifest, build the model and the tokenizer.

    Raises:
        FileNotFoundError: no such file.
    """
    try:
        file = open_unchecked(path)
    except ValueError as error:
        return Verification([], [str(error)])
    problems = list(problems_of(file))
    damaged = {problem.tensor for problem in problems}
    tensors = [
        TensorCheck(name, entry.part, name not in damaged)
        for name, entry in file.manifest.tensors.items()
    ]
    texts = [f"{file.path} {problem.text}" for problem in problems]
    return Verification(tensors, texts or _problems_of_model(file))


def _problems_of_model(file: PackedFile) -> list[str]:
    """What only shows when the parts are put together: codes beyond their grid, shapes at odds."""
    # It imports what running a file does not need.
    from trilith.packed.tokenizer import load_tokenizer

    try:
        for name, entry in file.manifest.tensors.items():
            if entry.codes is not None:
                file.packed_weight(name.removesuffix(".codes")).codes()
        build_packed_model(file)
        load_tokenizer(file)
    except ValueError as error:
        return [str(error)]
    return []
