"""Reading a packed file: memory mapped, no pickle, everything checked before anything is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trilith.files import require
from trilith.kernels import PackedWeight, StoredRows
from trilith.packed.contents import TOKENIZER_TENSOR
from trilith.packed.manifest import Manifest, TensorEntry, dtype_name, from_metadata, hash_of
from trilith.quant import CODECS, grid_named


@dataclass(frozen=True)
class PackedFile:
    """A checked packed file; its tensors are views of the mapped file."""

    path: Path
    manifest: Manifest
    tensors: dict[str, Tensor]
    header_bytes: int

    @property
    def tokenizer_bytes(self) -> bytes:
        """The tokenizer's model file."""
        return bytes(self.tensors[TOKENIZER_TENSOR].numpy())

    def packed_weight(self, name: str) -> PackedWeight:
        """Return the packed weight of the projection `name`.

        Raises:
            ValueError: codes and scales do not fit each other.
        """
        entry = self.manifest.tensors[f"{name}.codes"].codes
        with naming(self.path):
            if entry is None or entry.codec not in CODECS or entry.scale not in self.tensors:
                raise ValueError(f"does not say how {name}.codes is packed; pack the model again")
            return PackedWeight(
                self.tensors[f"{name}.codes"],
                self.tensors[entry.scale],
                entry.shape,
                grid_named(entry.grid),
                CODECS[entry.codec],
            )

    def stored_rows(self, name: str) -> StoredRows:
        """Return the rows of the `embedding` or the `head`.

        Raises:
            ValueError: there are none, or values and scales do not fit each other.
        """
        values, scale = self.tensors.get(f"{name}.weight"), self.tensors.get(f"{name}.scale")
        with naming(self.path):
            if values is None:
                raise ValueError(f"lacks {name}.weight, which its model needs; pack it again")
            return StoredRows(values, scale, self.manifest.model.width)

    def stored_head(self) -> StoredRows:
        """Return the rows of the head, which may be those of the embedding."""
        return self.stored_rows("embedding" if self.manifest.model.tied_head else "head")


class Problem(NamedTuple):
    """What is wrong with a packed file, and with which of its tensors, if with one."""

    text: str
    tensor: str | None = None


def read_packed(path: Path) -> PackedFile:
    """Open a packed file and check all of it: format, version, names, dtypes, shapes and hashes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: foreign, newer, damaged or edited; the text names the file and what to do.
    """
    file = open_unchecked(path)
    problem = next(problems_of(file), None)
    if problem is not None:
        raise ValueError(f"{file.path} {problem.text}")
    return file


def open_unchecked(path: Path) -> PackedFile:
    """Open a packed file whose manifest is whole; nothing is known of its tensors yet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: foreign, newer, cut off, or the manifest is damaged or edited.
    """
    path = require(path, made_by="the pack stage")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the packed .safetensors file")
    with naming(path):
        header_bytes, metadata, tensors = _open(path)
        return PackedFile(path, from_metadata(metadata), tensors, header_bytes)


def problems_of(file: PackedFile) -> Iterator[Problem]:
    """Compare all that is stored with the manifest; hand out what is wrong, first the names."""
    expected, stored = set(file.manifest.tensors), set(file.tensors)
    missing, extra = sorted(expected - stored), sorted(stored - expected)
    if missing or extra:
        yield Problem(
            f"lacks the tensors {missing} and holds the unknown tensors {extra}; "
            "copy or pack the file again"
        )
    for name, entry in file.manifest.tensors.items():
        if name in file.tensors and (text := _problem_of_tensor(file.tensors[name], name, entry)):
            yield Problem(text, name)
    tokenizer = file.manifest.tensors.get(TOKENIZER_TENSOR)
    if tokenizer is None or tokenizer.sha256 != file.manifest.tokenizer_sha256:
        yield Problem("holds no tokenizer, or another one than it says; pack it again")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of the text of a ValueError."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path} {text}") from None


def _open(path: Path) -> tuple[int, dict[str, str] | None, dict[str, Tensor]]:
    try:
        with path.open("rb") as file:
            header_bytes = 8 + int.from_bytes(file.read(8), "little")
        with safe_open(path, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.offset_keys()}
            return header_bytes, content.metadata(), tensors
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"is not a safetensors file, or is cut off or damaged ({error}); "
            "copy or pack the file again"
        ) from None


def _problem_of_tensor(tensor: Tensor, name: str, entry: TensorEntry) -> str | None:
    if (dtype_name(tensor), tuple(tensor.shape)) != (entry.dtype, entry.shape):
        return (
            f"holds {name} as {dtype_name(tensor)} {list(tensor.shape)} where the manifest says "
            f"{entry.dtype} {list(entry.shape)}; copy or pack the file again"
        )
    if hash_of(tensor) != entry.sha256:
        return f"has damaged bytes in {name} (sha256 differs); copy or pack the file again"
    return None
