"""The whole configuration as types: a value that fits no section is refused before any work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import root  # noqa: F401 (before the package)
from sections import build, build_seed
from trilith.corpus import CorpusConfig
from trilith.evaluation import EvaluateConfig
from trilith.evolution import InstructionConfig, check_files
from trilith.hardware import HardwareConfig
from trilith.imports import open_source
from trilith.model import ModelConfig, require_shape
from trilith.packed import PackConfig
from trilith.quant import QuantConfig
from trilith.tokens import TokenizerConfig
from trilith.training.devices import TrainerConfig
from trilith.training.evolve import EvolveConfig
from trilith.training.fit import TrainConfig
from trilith.training.pretrain import PretrainConfig
from trilith.training.tracking import TrackingConfig


@dataclass(frozen=True)
class Inputs:
    """Where the outputs of the stages before lie."""

    corpus: str
    tokens: str
    checkpoints: str
    teacher: str
    evolved: str
    packed: str
    metrics: str


@dataclass(frozen=True)
class Config:
    """Every section of conf/config.yaml, but for where a stage writes: dvc.yaml says that."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    quant: QuantConfig
    train: TrainConfig
    trainer: TrainerConfig
    pretrain: PretrainConfig
    instructions: InstructionConfig
    evolve: EvolveConfig
    pack: PackConfig
    evaluate: EvaluateConfig
    tracking: TrackingConfig
    hardware: HardwareConfig
    inputs: Inputs
    seed: int
    variant: str


def check(content: Any) -> Config:
    """Build every section of a resolved configuration.

    Raises:
        ValueError: a key or a value fits no section.
    """
    sections = {k: v for k, v in content.items() if k not in ("out_dir", "metrics_dir")}
    config = build(Config, sections, key="")
    build_seed(content["seed"])
    return config


def check_inputs(config: Config) -> None:
    """Look at the user's own files that no early stage reads: better now than after pretraining.

    Raises:
        FileNotFoundError, ValueError: a file of instructions is missing or does not fit its form,
            or a teacher is no model that is known, or of another shape than the section model.
    """
    check_files(config.instructions)
    if config.evolve.teacher is not None:
        teacher = open_source(Path(config.evolve.teacher))
        origin = f"evolve.teacher={config.evolve.teacher}"
        require_shape(teacher.model, config.model, origin=origin)
