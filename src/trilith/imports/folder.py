"""What `trilith import` leaves: our checkpoint, its tokenizer, and its shape as a file of conf/."""

from dataclasses import asdict
from pathlib import Path

import yaml

from trilith.files import replacing
from trilith.imports.source import Source
from trilith.model import ModelConfig, save_checkpoint

TOKENIZER_FILE = "tokenizer.model"
MODEL_FILE = "model.yaml"


def write_import(source: Source, out_dir: Path) -> None:
    """Write the checkpoint of a source as a folder, whole or not at all.

    Raises:
        ValueError: the folder is not empty, or the source has no tokenizer or damaged weights.
    """
    require_free(out_dir)
    if source.tokenizer is None:
        raise ValueError(
            f"{source.path} comes without its tokenizer's file; start pretraining from it directly"
        )
    checkpoint = source.load_with_origin()
    with replacing(out_dir) as partial:
        save_checkpoint(checkpoint, partial)
        (partial / TOKENIZER_FILE).write_bytes(source.tokenizer)
        (partial / MODEL_FILE).write_text(model_yaml(source.model, kind=source.kind))


def require_free(out_dir: Path) -> None:
    """Refuse to write over anything.

    Raises:
        ValueError: something is there.
    """
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(f"{out_dir} is there already; give another place, or delete it")


def model_yaml(model: ModelConfig, *, kind: str) -> str:
    """Return the shape as a file for conf/model."""
    return f"# Imported from {kind}.\n{yaml.safe_dump(asdict(model), sort_keys=False)}"
