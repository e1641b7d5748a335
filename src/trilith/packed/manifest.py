"""The manifest in a packed file's header: what every tensor is, and the hashes that prove it.

safetensors metadata holds one key, `trilith`, with the JSON
`{"format": "trilith-packed", "version": 2, "sha256": ..., "manifest": {...}}`; the hash is that of
the manifest as compact JSON with sorted keys. One key, because safetensors writes several in random
order and equal models must give equal files.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor

from trilith.model import ModelConfig

METADATA_KEY = "trilith"
FORMAT = "trilith-packed"
# 2 knows `qkv_bias`, 3 several ids that end a text; older files have none of it.
VERSION = 3
# As tokens/marks.py names it; that package would bring a tokenizer's library with it.
_SECOND_END = "</s>2"

Part = Literal["codes", "scales", "dense", "embedding", "head", "norms", "biases", "tokenizer"]
PARTS: tuple[Part, ...] = (
    "codes",
    "scales",
    "dense",
    "embedding",
    "head",
    "norms",
    "biases",
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
    # What older programs read is written for them.
    version = VERSION if _SECOND_END in manifest.special_ids else VERSION - 1
    envelope = {"format": FORMAT, "version": version, "sha256": _body_hash(body), "manifest": body}
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
    fields["model"] = _parse_model(fields["model"])
    fields["tensors"] = {
        name: _parse_entry(name, entry) for name, entry in fields["tensors"].items()
    }
    if fields["activation_bits"] not in (8, None):
        raise ValueError(f"activation_bits={fields['activation_bits']}")
    manifest = Manifest(**fields)
    _require(str, tokenizer_sha256=manifest.tokenizer_sha256)
    _require(dict, special_ids=manifest.special_ids, provenance=manifest.provenance)
    _require(int, **manifest.special_ids)
    for name, token in manifest.special_ids.items():
        if not 0 <= token < manifest.model.vocab_size:
            raise ValueError(f"special id {name}={token}")
    return manifest


def _parse_model(values: dict[str, Any]) -> ModelConfig:
    """Parse the shape; JSON may hold another kind of value where ours is a whole number."""
    values = {"qkv_bias": False} | values
    for key, kind in get_type_hints(ModelConfig).items():
        _require(kind if kind in (int, float, bool) else str, **{key: values[key]})
    return ModelConfig(**values)


def _parse_entry(name: str, entry: dict[str, Any]) -> TensorEntry:
    fields = entry | {"shape": _parse_shape(entry["shape"])}
    _require(str, dtype=fields["dtype"], sha256=fields["sha256"])
    if fields["part"] not in PARTS:
        raise ValueError(f"part={fields['part']}")
    signs = (fields["part"] == "codes", name.endswith(".codes"), fields["codes"] is not None)
    if any(signs) != all(signs):
        raise ValueError(f"part={fields['part']} of {name} with codes={fields['codes']}")
    if fields["codes"] is not None:
        codes = fields["codes"] | {"shape": _parse_shape(fields["codes"]["shape"])}
        _require(str, **{key: codes[key] for key in ("grid", "codec", "scale")})
        if len(codes["shape"]) != 2 or not all(codes["shape"]):
            raise ValueError(f"shape={codes['shape']} of {name}, expected rows and columns")
        fields["codes"] = CodesEntry(**codes)
    return TensorEntry(**fields)


def _parse_shape(values: list[int]) -> tuple[int, ...]:
    _require(int, **{f"shape[{place}]": size for place, size in enumerate(values)})
    if min(values, default=0) < 0:
        raise ValueError(f"shape={values}")
    return tuple(values)


def _require(kind: type, /, **values: Any) -> None:
    for key, value in values.items():
        # JSON writes a float that is whole with or without its point; true is no number.
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{key}={value!r}, expected {kind.__name__}")


def _compact(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _body_hash(body: Any) -> str:
    # Not `_compact`: a damaged manifest may hold NaN, which must not stop the comparison.
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
