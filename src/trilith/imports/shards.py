"""Safetensors in one file or in shards: names, shapes and dtypes first, tensors when asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trilith.files import read_json

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shards:
    """Tensors of a folder by name: which file holds each, its shape and its safetensors dtype."""

    folder: Path
    files: tuple[Path, ...]
    file_of: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


def open_shards(folder: Path) -> Shards:
    """Read the headers of all weight files.

    Raises:
        FileNotFoundError: no safetensors at all, or a shard that the index names.
        ValueError: a file is cut or damaged, or does not hold what the index says.
    """
    files = _weight_files(folder)
    file_of: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for path in files:
        with _opened(path) as content:
            for name in content.keys():  # noqa: SIM118 (a file, not a dict)
                part = content.get_slice(name)
                file_of[name] = path
                shapes[name], dtypes[name] = tuple(part.get_shape()), part.get_dtype()
    return Shards(folder, files, file_of, shapes, dtypes)


def read_tensor(shards: Shards, name: str) -> Tensor:
    """Return one tensor in float32."""
    with _opened(shards.file_of[name]) as content:
        return content.get_tensor(name).to(torch.float32)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / _WHOLE).is_file():
        return (folder / _WHOLE,)
    if not (folder / _INDEX).is_file():
        others = [
            path.name for pattern in ("*.bin", "*.pt*", "*.gguf") for path in folder.glob(pattern)
        ]
        hint = f" ({', '.join(sorted(others)[:3])} is not read: convert it)" if others else ""
        raise FileNotFoundError(
            f"{folder} has no weights: neither {_WHOLE} nor {_INDEX}{hint}; "
            "download the safetensors"
        )
    index = read_json(folder / _INDEX, made_by="its own project")
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{folder / _INDEX} has no weight_map; get another copy")
    files = tuple(folder / Path(name).name for name in sorted(set(named.values())))
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(files)} shards: {', '.join(missing[:3])}; "
            "download them"
        )
    return files


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no safetensors file, or is cut or damaged ({error}); download it again"
        ) from None
