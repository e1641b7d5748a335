"""A checkpoint: `model.safetensors` beside `config.json` with shape, quantization and origin."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trilith.files import read_json, replacing, require, sha256
from trilith.model.config import ModelConfig
from trilith.model.transformer import Transformer, build_model
from trilith.quant import QuantConfig

FORMAT_VERSION = 1
_HEAD = "head.weight"
_CONFIG_KEYS = {"model", "quant", "tokenizer_sha256", "weights_sha256", "provenance"}


class Checkpoint(NamedTuple):
    """A trained model and what is known about it."""

    model: Transformer
    quant: QuantConfig | None
    tokenizer_sha256: str
    provenance: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint as a folder, whole or not at all."""
    state = {name: t.contiguous() for name, t in checkpoint.model.state_dict().items()}
    if checkpoint.model.config.tied_head:
        del state[_HEAD]
    with replacing(folder) as partial:
        partial.mkdir()
        save_file(state, partial / "model.safetensors")
        content = {
            "format_version": FORMAT_VERSION,
            "model": asdict(checkpoint.model.config),
            "quant": asdict(checkpoint.quant) if checkpoint.quant else None,
            "tokenizer_sha256": checkpoint.tokenizer_sha256,
            "weights_sha256": sha256(partial / "model.safetensors"),
            "provenance": checkpoint.provenance,
        }
        (partial / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def load_checkpoint(folder: Path, *, made_by: str) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: as `save_checkpoint` wrote it.
        made_by: the stage that makes it, for the errors.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged or of another format version.
    """
    content = _read_config(Path(folder) / "config.json", made_by=made_by)
    path = require(Path(folder) / "model.safetensors", made_by=made_by)
    damaged = f"{path} is damaged; delete {folder} and run {made_by} again"
    if sha256(path) != content["weights_sha256"]:
        raise ValueError(f"{damaged} (its SHA-256 is not the one in config.json)")
    model = build_model(content["model"], content["quant"])
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{damaged} ({error})") from None
    load_weights(model, state, origin=str(path))
    model.eval()
    return Checkpoint(model, content["quant"], content["tokenizer_sha256"], content["provenance"])


def require_shape(shape: ModelConfig, expected: ModelConfig, *, origin: str) -> None:
    """Refuse a checkpoint of another shape than the configuration's.

    Raises:
        ValueError: the text names `origin` and the values that differ.
    """
    found, wanted = asdict(shape), asdict(expected)
    differing = [key for key in found if found[key] != wanted[key]]
    if differing:
        pairs = ", ".join(f"{key}={found[key]}, not {wanted[key]}" for key in differing)
        raise ValueError(
            f"{origin} holds another model than the section model says: {pairs}; "
            "run the stage that makes it again, or choose that model"
        )


def _read_config(path: Path, *, made_by: str) -> dict[str, Any]:
    content = read_json(path, made_by=made_by)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has checkpoint format {version}, this Trilith reads {FORMAT_VERSION}; "
            f"run {made_by} again"
        )
    missing = _CONFIG_KEYS - set(content)
    try:
        if missing:
            raise ValueError(f"lacks {sorted(missing)}")
        model = ModelConfig(**content["model"])
        quant = QuantConfig(**content["quant"]) if content["quant"] else None
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete {path.parent} and run {made_by} again"
        ) from None
    return content | {"model": model, "quant": quant}


def load_weights(model: Transformer, state: dict[str, torch.Tensor], *, origin: str) -> None:
    """Copy tensors into the model; all must fit, and a tied head needs no tensor of its own.

    A model on the meta device has nowhere to copy to: there the tensors become its weights.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape; `origin` names the source.
    """
    if model.config.tied_head:
        state = state | {_HEAD: state["embedding.weight"]}
    try:
        model.load_state_dict(state, assign=model.embedding.weight.is_meta)
    except RuntimeError as error:
        raise ValueError(
            f"{origin} does not fit the model's shape ({error}); restore it or make it again"
        ) from None
    if model.config.tied_head:
        model.head.weight = model.embedding.weight
