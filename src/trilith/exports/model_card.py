"""The model card of a Hugging Face folder: what the model is, and what was measured of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from trilith.files import read_json, sha256
from trilith.packed import PackedFile, measure

Figures = dict[str, float]

# Figures of the stage `evaluate` that a reader of a model card asks for, and their words.
_WORDS = {
    "loss_nats": "loss on the test split (nats a token)",
    "perplexity": "perplexity, by this tokenizer's tokens",
    "perplexity_ratio": "perplexity against its dense twin",
    "bits_per_byte": "bits per byte of text",
    "answer_loss_nats": "loss on the answers to instructions (nats a token)",
    "top1_agreement": "agreement with its dense twin on the most likely token",
    "num_tokens_seen": "tokens seen in training",
}


def read_figures(path: Path, *, packed: Path) -> Figures:
    """Read what `evaluate` measured of one packed file.

    Args:
        path: the `metrics.json` of the stage `evaluate`.
        packed: the packed file, known by its name and its hash.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no figures of this model, or those of another file of that name.
    """
    content = read_json(path, made_by="the evaluate stage")
    name = packed.stem
    models = _object(content, "models")
    if not isinstance(models.get(name), dict):
        raise ValueError(
            f"{path} holds no figures of {name}; it has: {', '.join(models) or 'none'}"
        )
    measured = _object(content, "packed_sha256").get(name)
    if measured is None:
        raise ValueError(
            f"{path} does not say which file its figures of {name} are of: an earlier Trilith "
            "wrote it; run the stage evaluate again (dvc repro evaluate), or leave out --metrics"
        )
    if measured != sha256(packed):
        raise ValueError(
            f"{path} holds figures of another {name} (SHA-256 {str(measured)[:12]}) than {packed} "
            f"({sha256(packed)[:12]}); run the stage evaluate on this file, or leave out --metrics"
        )
    return {key: models[name][key] for key in _WORDS if _is_number(models[name].get(key))}


def _object(content: Any, key: str) -> dict[str, Any]:
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def model_card(file: PackedFile, *, weights: str, figures: Figures | None) -> str:
    """Return the card as Markdown; figures are those of the packed file, and so it says."""
    model, report = file.manifest.model, measure(file)
    grids = ", ".join(report.code_counts) or "none: a dense model"
    facts = {
        "parameters": f"{report.num_parameters:,}",
        "grid of the projections": grids,
        "bits per projection weight, packed": f"{report.bits_per_weight:.3f}",
        "packed file": f"{report.file_bytes:,} bytes, sha256 `{sha256(file.path)}`",
        "weights here": f"the packed file's levels and scales; what is in floats is in {weights}",
    }
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---",
        f"# {model.name}",
        "A language model packed by Trilith and written for transformers.",
        _table(("what", "value"), facts),
        f"## Activations\n\n{_activations(file)}",
        f"## Measured\n\n{_measured(figures)}",
        f"## Shape\n\n{_table(('key', 'value'), asdict(model))}",
    ]
    if file.manifest.provenance:
        parts.append(f"## Provenance\n\n{_table(('key', 'value'), file.manifest.provenance)}")
    return "\n\n".join(parts) + "\n"


def _activations(file: PackedFile) -> str:
    if file.manifest.activation_bits is None:
        return "Floats, here as in the packed file."
    return (
        f"int{file.manifest.activation_bits} activations with one scale a token, here as in the "
        "packed file: `quantization_config` asks transformers for it, which needs the package "
        "`accelerate`. Logits differ where two ways of adding floats round a feature to different "
        "whole numbers. transformers compiles these layers at their first use; where there is no "
        "C++ compiler, the environment variable `TORCHDYNAMO_DISABLE=1` does without."
    )


def _measured(figures: Figures | None) -> str:
    if not figures:
        return "Nothing was measured, or no measurements were given to the export."
    named = {_WORDS[key]: f"{value:,.4g}" for key, value in figures.items()}
    return f"On the packed file, by `evaluate`:\n\n{_table(('figure', 'value'), named)}"


def _table(head: tuple[str, str], rows: dict[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()])


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
