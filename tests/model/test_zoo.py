"""Every size in conf/model is the size that its name says."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from trilith.model import ModelConfig, build_model, count_parameters

FOLDER = Path(__file__).parents[2] / "conf" / "model"

# Name: vocabulary, parameters of the class, relative tolerance.
CLASSES = {
    "nano": (2048, 1.0e6, 0.15),
    "micro": (2048, 5.0e6, 0.15),
    "125m": (32_000, 125e6, 0.15),
    "350m": (32_000, 350e6, 0.15),
    "700m": (32_000, 700e6, 0.15),
    "tinyllama": (32_000, 1.1e9, 0.01),
    "1.3b": (32_000, 1.3e9, 0.15),
    "3b": (32_000, 3.0e9, 0.15),
    "7b": (32_000, 7.0e9, 0.15),
}


def shape(name: str, vocab_size: int) -> ModelConfig:
    """The shape that conf/ gives a model of this name together with a tokenizer."""
    content = {"tokenizer": {"vocab_size": vocab_size}, "model": OmegaConf.load(name_file(name))}
    resolved = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
    return ModelConfig(**resolved["model"])  # type: ignore[index, call-overload]


def name_file(name: str) -> Path:
    """The file of a model."""
    return FOLDER / f"{name}.yaml"


def test_every_file_has_a_class_here() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_has_as_many_parameters_as_its_name_says(name: str) -> None:
    vocab_size, expected, tolerance = CLASSES[name]
    config = shape(name, vocab_size)
    with torch.device("meta"):
        model = build_model(config, None)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(config).total == total
    assert abs(total / expected - 1) < tolerance, f"{name} has {total} parameters"
    assert config.name == name
    assert all(parameter.is_meta for parameter in model.parameters())
