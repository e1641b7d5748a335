"""Reading a packed file: memory mapped, no pickle, everything checked before anything is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trilith.files import require
from trilith.kernels import PackedWeight
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


def read_packed(path: Path) -> PackedFile:
    """Open a packed file and check all of it: format, version, names, dtypes, shapes and hashes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: foreign, newer, damaged or edited; the text names the file and what to do.
    """
    path = require(path, made_by="the pack stage")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the packed .safetensors file")
    with naming(path):
        header_bytes, metadata, tensors = _open(path)
        manifest = from_metadata(metadata)
        _check_names(set(tensors), expected=set(manifest.tensors))
        for name, entry in manifest.tensors.items():
            _check_tensor(name, tensors[name], entry)
        tokenizer = manifest.tensors.get(TOKENIZER_TENSOR)
        if tokenizer is None or tokenizer.sha256 != manifest.tokenizer_sha256:
            raise ValueError("holds no tokenizer, or another one than it says; pack it again")
    return PackedFile(path, manifest, tensors, header_bytes)


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


def _check_names(stored: set[str], *, expected: set[str]) -> None:
    missing, extra = sorted(expected - stored), sorted(stored - expected)
    if missing or extra:
        raise ValueError(
            f"lacks the tensors {missing} and holds the unknown tensors {extra}; "
            "copy or pack the file again"
        )


def _check_tensor(name: str, tensor: Tensor, entry: TensorEntry) -> None:
    if (dtype_name(tensor), tuple(tensor.shape)) != (entry.dtype, entry.shape):
        raise ValueError(
            f"holds {name} as {dtype_name(tensor)} {list(tensor.shape)} where the manifest says "
            f"{entry.dtype} {list(entry.shape)}; copy or pack the file again"
        )
    if hash_of(tensor) != entry.sha256:
        raise ValueError(
            f"has damaged bytes in {name} (sha256 differs); copy or pack the file again"
        )
