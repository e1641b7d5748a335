"""Reading a packed file: memory mapped, no pickle, everything checked before anything is used."""

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trilith.files import require
from trilith.kernels import PackedWeight, StoredRows
from trilith.packed.contents import TOKENIZER_TENSOR
from trilith.packed.manifest import Manifest, TensorEntry, dtype_name, from_metadata, hash_of
from trilith.quant import CODECS, grid_named


@dataclass(frozen=True)
class PackedFile:
    """A checked packed file; its tensors are views of the mapped file, not to be written to."""

    path: Path
    manifest: Manifest
    tensors: dict[str, Tensor]
    header_bytes: int
    addresses: range = range(0)

    def let_go(self, tensor: Tensor) -> None:
        """Give back the memory that a tensor of the mapped file takes; reading maps it again."""
        page = mmap.PAGESIZE
        start = -(-tensor.data_ptr() // page) * page
        length = (tensor.data_ptr() + tensor.nbytes - start) // page * page
        # Elsewhere than in a mapped file, the same call would erase it.
        if length > 0 and start in self.addresses and start + length - 1 in self.addresses:
            advise = ctypes.CDLL(None).madvise
            advise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)

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
    """Open a packed file whose header is whole and possible; no byte of its tensors is read yet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: foreign, newer, cut off, the manifest is damaged or edited, or describes what
            cannot be.
    """
    path = require(path, made_by="the pack stage")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the packed .safetensors file")
    with naming(path):
        header_bytes, metadata, tensors = _open(path)
        file = PackedFile(path, from_metadata(metadata), tensors, header_bytes)
        _require_possible(file)
        return replace(file, addresses=_mapping_of(path, tensors.values()))


def problems_of(file: PackedFile) -> Iterator[Problem]:
    """Compare all that is stored with the manifest; hand out what is wrong, tensor by tensor."""
    found = [(file.tensors[name], name, entry) for name, entry in file.manifest.tensors.items()]
    # Hashing lets other threads run.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        texts = pool.map(lambda each: _problem_of_tensor(file, *each), found)
        for (_, name, _), text in zip(found, texts, strict=True):
            if text:
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


def _require_possible(file: PackedFile) -> None:
    """Refuse a header that a file of this size cannot have, before anything is computed from it.

    Sizes of a model may come from anybody: plans and modules of it would hang or overflow.

    Raises:
        ValueError: tensors lack, the model has more weights than the file has bits, or codes and
            scales do not fit each other.
    """
    expected, stored = set(file.manifest.tensors), set(file.tensors)
    missing, extra = sorted(expected - stored), sorted(stored - expected)
    if missing or extra:
        raise ValueError(
            f"lacks the tensors {missing} and holds the unknown tensors {extra}; "
            "copy or pack the file again"
        )
    shape = file.manifest.model
    # Queries, the output of attention and one projection of the MLP, each with its own tensor.
    in_block = shape.width * (2 * shape.width + shape.mlp_width)
    least = shape.vocab_size * shape.width + shape.num_layers * in_block
    num_bits = 8 * sum(tensor.nbytes for tensor in file.tensors.values())
    if least > num_bits or shape.num_layers > len(stored):
        raise ValueError(
            f"says that its model has {shape.num_layers} layers and at least {least} weights, and "
            f"holds {len(stored)} tensors of {num_bits} bits; pack it again"
        )
    for name, entry in file.manifest.tensors.items():
        if entry.codes is not None:
            file.packed_weight(name.removesuffix(".codes"))


def _mapping_of(path: Path, tensors: Iterable[Tensor]) -> range:
    """Return the addresses at which the file is mapped; nothing where the system does not say."""
    some = max(tensors, key=lambda tensor: tensor.nbytes, default=None)
    maps = Path("/proc/self/maps")
    if some is None or not maps.is_file():
        return range(0)
    for line in maps.read_text().splitlines():
        start, _, end = line.split(maxsplit=1)[0].partition("-")
        place = range(int(start, 16), int(end, 16))
        if some.data_ptr() in place and line.endswith(str(path.resolve())):
            return place
    return range(0)


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


def _problem_of_tensor(
    file: PackedFile, tensor: Tensor, name: str, entry: TensorEntry
) -> str | None:
    if (dtype_name(tensor), tuple(tensor.shape)) != (entry.dtype, entry.shape):
        return (
            f"holds {name} as {dtype_name(tensor)} {list(tensor.shape)} where the manifest says "
            f"{entry.dtype} {list(entry.shape)}; copy or pack the file again"
        )
    sha256 = hash_of(tensor)
    file.let_go(tensor)
    if sha256 != entry.sha256:
        return f"has damaged bytes in {name} (sha256 differs); copy or pack the file again"
    return None
