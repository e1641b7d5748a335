"""Small corpora to curate: sources of text that pass every gate, and the settings to read them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilith.corpus import CorpusConfig, GateConfig, SourceConfig

_WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")


@pytest.fixture
def gates() -> GateConfig:
    return GateConfig(
        max_bytes=500_000,
        min_lines=10,
        max_lines=10_000,
        min_letter_share=0.25,
        max_line_length=1_000,
        generated_markers=("@generated", "Do not edit"),
        generated_head_lines=10,
        licences=("mit", "psf-2.0"),
    )


@pytest.fixture
def folder_config(gates: GateConfig) -> Callable[..., CorpusConfig]:
    def make(path: Path, **source: Any) -> CorpusConfig:
        config = SourceConfig(
            kind="folder", licence="mit", path=str(path), suffixes=(".py", ".txt")
        )
        return CorpusConfig(source=replace(config, **source), gates=gates)

    return make


@pytest.fixture
def python_source() -> Callable[..., str]:
    def make(number: int, *, num_functions: int = 12) -> str:
        parts = [f'"""Module {number}."""\n']
        for index in range(num_functions):
            word = _WORDS[(number + index * index) % len(_WORDS)]
            parts.append(f"def {word}_{number}_{index}(value):\n    return value + {index}\n")
        return "\n".join(parts)

    return make


@pytest.fixture
def folder(tmp_path: Path, python_source: Callable[..., str]) -> Path:
    """Sixty different modules, enough for no split to be empty."""
    root = tmp_path / "source"
    root.mkdir()
    for number in range(60):
        (root / f"module_{number:02}.py").write_text(python_source(number))
    return root
