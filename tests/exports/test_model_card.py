"""The model card: figures as they were measured, or the word that there are none."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.exports.conftest import TERNARY, WIDE

from trilith.exports.model_card import model_card, read_figures

FIGURES = {"perplexity": 80.196, "bits_per_byte": 2.0185, "reference": "dense", "kl_nats": 0.4}


def _metrics(folder: Path, **packed_sha256: str) -> Path:
    path = folder / "metrics.json"
    path.write_text(json.dumps({"models": {"wide": FIGURES}, "packed_sha256": packed_sha256}))
    return path


def test_measured_figures_stand_in_the_card(packed: Any, tmp_path: Path) -> None:
    file = packed()
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
    figures = read_figures(_metrics(tmp_path, wide=digest), packed=file.path)
    card = model_card(file, weights="float32", figures=figures)
    assert "| perplexity, by this tokenizer's tokens | 80.2 |" in card
    assert "| bits per byte of text | 2.018 |" in card or "| 2.019 |" in card
    assert digest in card and f"{file.path.stat().st_size:,} bytes" in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_figures_of_another_file_of_that_name_are_refused(packed: Any, tmp_path: Path) -> None:
    file = packed()
    with pytest.raises(ValueError, match=r"figures of another wide \(SHA-256 0{12}\) than .*wide"):
        read_figures(_metrics(tmp_path, wide="0" * 64), packed=file.path)


def test_figures_of_no_known_file_are_refused(packed: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not say which file.*run the stage evaluate again"):
        read_figures(_metrics(tmp_path), packed=packed().path)


def test_without_figures_the_card_says_so(packed: Any) -> None:
    card = model_card(packed(), weights="float32", figures=None)
    assert "Nothing was measured" in card and "perplexity" not in card


def test_the_card_says_what_activations_are(packed: Any) -> None:
    card = model_card(packed(), weights="float32", figures=None)
    assert "Floats, here as in the packed file" in card
    int8 = packed(WIDE, replace(TERNARY, activation_bits=8))
    card = model_card(int8, weights="float32", figures=None)
    assert "int8 activations" in card and "accelerate" in card


@pytest.mark.parametrize("content", ["[]", "{}", '{"models": {"other": {}}}'])
def test_metrics_of_another_model_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json holds no figures of wide"):
        read_figures(path, packed=tmp_path / "wide.safetensors")
