"""The manifest in a packed file's header: what every tensor is, and the hashes that prove it.

safetensors metadata holds one key, `trilith`, with the JSON
`{"format": "trilith-packed", "version": 1, "sha256": ..., "manifest": {...}}`; the hash is that of
the manifest as compact JSON with sorted keys. One key, because safetensors writes several in random
order and equal models must give equal files.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trilith.model import ModelConfig

METADATA_KEY = "trilith"
FORMAT = "trilith-packed"
VERSION = 1

Part = Literal["codes", "scales", "dense", "embedding", "head", "norms", "tokenizer"]
PARTS: tuple[Part, ...] = (
    "codes",
    "scales",
    "dense",
    "embedding",
    "head",
    "norms",
    "tokenizer",
)


@dataclass(frozen=True)
class CodesEntry:
    """What codes mean: their grid, their codec, the weight's shape, the tensor of its scales."""

    grid: str
    codec: str
    shape: tuple[int, int]
    scale: str


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor. `codes` is set for packed codes alone."""

    part: Part
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    codes: CodesEntry | None = None


@dataclass(frozen=True)
class Manifest:
    """All that a packed file says about itself."""

    model: ModelConfig
    activation_bits: Literal[8] | None
    tensors: dict[str, TensorEntry]
    tokenizer_sha256: str
    special_ids: dict[str, int]
    provenance: dict[str, Any]


def describe(tensor: Tensor, *, part: Part, codes: CodesEntry | None = None) -> TensorEntry:
    """Return the entry of a tensor."""
    return TensorEntry(part, dtype_name(tensor), tuple(tensor.shape), hash_of(tensor), codes)


def dtype_name(tensor: Tensor) -> str:
    """Return the dtype as the manifest writes it, such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def hash_of(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes in row-major order, in hex."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def to_metadata(manifest: Manifest) -> dict[str, str]:
    """Return the safetensors metadata that holds a manifest.

    Raises:
        ValueError: the provenance is not plain JSON.
    """
    try:
        body = json.loads(_compact(asdict(manifest)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be plain JSON without NaN: {error}") from None
    envelope = {"format": FORMAT, "version": VERSION, "sha256": _body_hash(body), "manifest": body}
    return {METADATA_KEY: _compact(envelope)}


def from_metadata(metadata: dict[str, str] | None) -> Manifest:
    """Read back what `to_metadata` wrote.

    Raises:
        ValueError: foreign, damaged or newer; the text says what is wrong and what to do.
    """
    envelope = _envelope(metadata)
    version = envelope.get("version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"has the impossible format version {version!r}; pack the model again")
    if version > VERSION:
        raise ValueError(
            f"has format version {version} and this trilith reads up to {VERSION}; upgrade trilith"
        )
    body = envelope.get("manifest")
    if _body_hash(body) != envelope.get("sha256"):
        raise ValueError("has a manifest that was changed after packing; pack the model again")
    try:
        return _parse(body)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"has a manifest that makes no sense ({error!r}); pack it again") from None


def _envelope(metadata: dict[str, str] | None) -> dict[str, Any]:
    foreign = "is a safetensors file of another program, not a packed model; trilith pack makes one"
    if not metadata or METADATA_KEY not in metadata:
        raise ValueError(foreign)
    try:
        envelope = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        raise ValueError("has a manifest that is not JSON; copy or pack the file again") from None
    if not isinstance(envelope, dict) or envelope.get("format") != FORMAT:
        raise ValueError(foreign)
    return envelope


def _parse(body: Any) -> Manifest:
    fields = dict(body)
    fields["model"] = ModelConfig(**fields["model"])
    fields["tensors"] = {name: _parse_entry(entry) for name, entry in fields["tensors"].items()}
    if fields["activation_bits"] not in (8, None):
        raise ValueError(f"activation_bits={fields['activation_bits']}")
    return Manifest(**fields)


def _parse_entry(entry: dict[str, Any]) -> TensorEntry:
    fields = entry | {"shape": tuple(entry["shape"])}
    if fields["part"] not in PARTS:
        raise ValueError(f"part={fields['part']}")
    if fields["codes"] is not None:
        codes = fields["codes"]
        fields["codes"] = CodesEntry(**(codes | {"shape": tuple(codes["shape"])}))
    return TensorEntry(**fields)


def _compact(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _body_hash(body: Any) -> str:
    # Not `_compact`: a damaged manifest may hold NaN, which must not stop the comparison.
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
