"""The dense model that evolves: the twin that pretraining made, or the user's own checkpoint."""

from pathlib import Path

from stage import Stage
from trilith.files import require, sha256
from trilith.imports import open_source
from trilith.model import ModelConfig, load_checkpoint, require_shape
from trilith.training.evolve_config import EvolveConfig
from trilith.training.teaching import Teacher


def load_teacher(stage: Stage) -> Teacher:
    """Load the checkpoint that `evolve.teacher` names, or the dense twin if it names none.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or not of the shape of the section model.
    """
    config, model = stage.section("evolve", EvolveConfig), stage.section("model", ModelConfig)
    if config.teacher is None:
        folder = stage.input("checkpoints") / "dense"
        checkpoint = load_checkpoint(folder, made_by="pretrain")
        require_shape(checkpoint.model.config, model, origin=str(folder))
        weights = require(folder / "model.safetensors", made_by="pretrain")
        return Teacher(checkpoint, {weights.name: sha256(weights)}, str(folder))
    source = open_source(Path(config.teacher))
    origin = f"evolve.teacher={config.teacher}"
    require_shape(source.model, model, origin=origin)
    checkpoint = source.load() if source.is_own else source.load_with_origin()
    return Teacher(checkpoint, source.weights_sha256, origin)
