"""The model card: figures as they were measured, or the word that there are none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.exports.conftest import TERNARY, WIDE

from trilith.exports.model_card import model_card, read_figures
from trilith.files import sha256

FIGURES = {"perplexity": 80.196, "bits_per_byte": 2.0185, "reference": "dense", "kl_nats": 0.4}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"models": {"wide": FIGURES}}))
    return path


def test_measured_figures_stand_in_the_card(packed: Any, metrics: Path) -> None:
    file = packed()
    card = model_card(file, weights="float32", figures=read_figures(metrics, name="wide"))
    assert "| perplexity, by this tokenizer's tokens | 80.2 |" in card
    assert "| bits per byte of text | 2.018 |" in card or "| 2.019 |" in card
    assert sha256(file.path) in card and f"{file.path.stat().st_size:,} bytes" in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_without_figures_the_card_says_so(packed: Any) -> None:
    card = model_card(packed(), weights="float32", figures=None)
    assert "Nothing was measured" in card and "perplexity" not in card


def test_the_card_says_what_activations_are(packed: Any) -> None:
    assert "Floats, here as in the packed file" in model_card(
        packed(), weights="float32", figures=None
    )
    int8 = packed(WIDE, replace(TERNARY, activation_bits=8))
    assert "int8 activations" in model_card(int8, weights="float32", figures=None)


@pytest.mark.parametrize("content", ["[]", "{}", '{"models": {"other": {}}}'])
def test_metrics_of_another_model_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json holds no figures of wide"):
        read_figures(path, name="wide")
