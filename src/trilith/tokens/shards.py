"""Token shards: the ids of a split in one flat file, and where its documents begin.

`<split>.bin` holds ids (uint16 or uint32, little endian), each document between `<s>` and `</s>`;
`<split>.idx` holds num_documents + 1 uint64 offsets into it. `manifest.json` names, counts and
hashes all. The shift by one between inputs and targets is not made here.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from trilith.files import read_json, require, sha256, write_json
from trilith.tokens.tokenizer import Tokenizer

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")

_OFFSET_DTYPE = np.dtype("<u8")
_MANIFEST_KEYS = {"format_version", "dtype", "vocab_size", "tokenizer_sha256", "splits"}


@dataclass(frozen=True)
class SplitManifest:
    """What the manifest says about one split; `bytes` is the UTF-8 length of the texts."""

    tokens: int
    documents: int
    bytes: int
    bin_sha256: str
    idx_sha256: str


@dataclass(frozen=True)
class TokenShard:
    """One split, memory mapped.

    Attributes:
        tokens: ids, [num_tokens]; the begin and end marks of each document are among them.
        offsets: first token of each document and the end of the last, [num_documents + 1].
        num_bytes: UTF-8 bytes of the texts, for bits per byte; marks have none.
        vocab_size: number of ids that may occur.
        tokenizer_sha256: hash of the tokenizer that made the ids.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    num_bytes: int
    vocab_size: int
    tokenizer_sha256: str

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """Ids of one document, between its begin and end marks."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write_shard(
    folder: Path,
    *,
    split: str,
    batches: Iterable[list[list[int]]],
    num_bytes: int,
    vocab_size: int,
    marks: tuple[int, int],
) -> SplitManifest:
    """Write the ids of a split; each document gets its begin and end marks here.

    Args:
        folder: where `<split>.bin` and `<split>.idx` go.
        split: name of the split.
        batches: documents as lists of ids, in batches so that not all need be in memory.
        num_bytes: UTF-8 bytes of all the texts.
        vocab_size: decides how wide an id is.
        marks: ids that begin and end a document.
    """
    bos_id, eos_id = marks
    offsets = [0]
    bin_path, idx_path = _shard_paths(folder, split)
    with bin_path.open("wb") as file:
        for batch in batches:
            ids = [token for document in batch for token in (bos_id, *document, eos_id)]
            offsets += (np.cumsum([len(document) + 2 for document in batch]) + offsets[-1]).tolist()
            np.array(ids, dtype=token_dtype(vocab_size)).tofile(file)
    np.array(offsets, dtype=_OFFSET_DTYPE).tofile(idx_path)
    return SplitManifest(
        tokens=offsets[-1],
        documents=len(offsets) - 1,
        bytes=num_bytes,
        bin_sha256=sha256(bin_path),
        idx_sha256=sha256(idx_path),
    )


def write_manifest(folder: Path, *, tokenizer: Tokenizer, splits: dict[str, SplitManifest]) -> None:
    """Write `manifest.json`, `ids.json` and `tokenizer.model`."""
    (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    vocabulary = {"vocab_size": tokenizer.vocab_size, "tokenizer_sha256": tokenizer.sha256}
    write_json(folder / "ids.json", {"ids": tokenizer.special_ids, **vocabulary})
    manifest = {
        "format_version": FORMAT_VERSION,
        "dtype": token_dtype(tokenizer.vocab_size).name,
        **vocabulary,
        "splits": {name: asdict(split) for name, split in splits.items()},
    }
    write_json(folder / "manifest.json", manifest)


def open_split(tokens_dir: Path, split: str) -> TokenShard:
    """Open one split after checking version, sizes, hashes and the tokenizer.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another version, or of another tokenizer.
    """
    manifest = _read_manifest(tokens_dir)
    if split not in manifest["splits"]:
        raise ValueError(f"split {split!r} is none of {sorted(manifest['splits'])} in {tokens_dir}")
    expected = SplitManifest(**manifest["splits"][split])
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    bin_path, idx_path = _shard_paths(tokens_dir, split)
    _check_file(bin_path, num_bytes=expected.tokens * dtype.itemsize, digest=expected.bin_sha256)
    num_offsets = expected.documents + 1
    _check_file(
        idx_path, num_bytes=num_offsets * _OFFSET_DTYPE.itemsize, digest=expected.idx_sha256
    )
    return TokenShard(
        tokens=np.memmap(bin_path, dtype=dtype, mode="r"),
        # int64, so that offsets mix with ordinary integers without turning into floats.
        offsets=np.fromfile(idx_path, dtype=_OFFSET_DTYPE).astype(np.int64),
        num_bytes=expected.bytes,
        vocab_size=manifest["vocab_size"],
        tokenizer_sha256=manifest["tokenizer_sha256"],
    )


def _read_manifest(tokens_dir: Path) -> dict[str, Any]:
    path = Path(tokens_dir) / "manifest.json"
    manifest = read_json(path, made_by="tokenize")
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version}, expected {FORMAT_VERSION}; run tokenize"
        )
    known = {field.name for field in fields(SplitManifest)}
    if set(manifest) != _MANIFEST_KEYS or any(
        set(split) != known for split in manifest["splits"].values()
    ):
        raise ValueError(
            f"{path} is damaged: expected the keys {sorted(_MANIFEST_KEYS)} and for each split "
            f"{sorted(known)}; run tokenize"
        )
    _check_tokenizer(path.parent, expected=manifest["tokenizer_sha256"])
    return manifest


def _check_tokenizer(folder: Path, *, expected: str) -> None:
    model = require(folder / "tokenizer.model", made_by="tokenize")
    if sha256(model) != expected:
        raise ValueError(
            f"{model} is not the tokenizer that made these ids (its hash is not the one in "
            "manifest.json); run tokenize"
        )
    special_ids = Tokenizer.load(model).special_ids
    ids = read_json(folder / "ids.json", made_by="tokenize")
    if ids.get("tokenizer_sha256") != expected or ids.get("ids") != special_ids:
        raise ValueError(f"{folder / 'ids.json'} is not the id table of {model.name}; run tokenize")


def _check_file(path: Path, *, num_bytes: int, digest: str) -> None:
    require(path, made_by="tokenize")
    if path.stat().st_size != num_bytes:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, expected {num_bytes}: it was cut or "
            "belongs to another run; run tokenize"
        )
    if sha256(path) != digest:
        raise ValueError(f"{path} is damaged (its hash is not the manifest's); run tokenize")


def _shard_paths(folder: Path, split: str) -> tuple[Path, Path]:
    return Path(folder) / f"{split}.bin", Path(folder) / f"{split}.idx"
