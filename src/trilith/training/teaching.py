"""The dense model that evolves and teaches, and what is kept of its predictions."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from trilith.files import require, sha256
from trilith.model import Checkpoint
from trilith.tokens import open_split
from trilith.training.batches import TokenWindows
from trilith.training.evolve_config import EvolveConfig
from trilith.training.fit import TrainConfig
from trilith.training.pretrain import check_shape, training_windows
from trilith.training.teacher import TaughtBy, TeacherCache, teach


class Teacher(NamedTuple):
    """A dense model, the SHA-256 of each file of its weights, and where it comes from."""

    checkpoint: Checkpoint
    weights_sha256: dict[str, str]
    origin: str


class Schooling(NamedTuple):
    """What decides on which windows a teacher is asked, and in which order."""

    config: EvolveConfig
    train: TrainConfig
    tokens_dir: Path
    num_ranks: int
    seed: int

    def windows(self) -> TokenWindows:
        """The training split in another order than pretraining drew it."""
        tokens = open_split(self.tokens_dir, "train").tokens
        return training_windows(tokens, self.train, num_ranks=self.num_ranks, seed=self.seed + 1)


def keep_predictions(teacher: Teacher, schooling: Schooling, out_dir: Path) -> dict[str, Any]:
    """Keep the teacher's predictions for all steps that see them; return flat metrics.

    Where the configuration keeps none, `out_dir` holds an empty list of them.

    Raises:
        ValueError: as `check_teacher`, or the disk has no room for them.
    """
    check_teacher(teacher, schooling)
    config, train = schooling.config, schooling.train
    num_batches = config.num_taught_steps * train.accumulate * schooling.num_ranks
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return teach(
        teacher.checkpoint.model.eval().to(device),
        schooling.windows(),
        num_windows=num_batches * train.micro_batch_size if config.top_k else 0,
        origin=_origin(teacher, schooling),
        out_dir=out_dir,
    )


def open_predictions(teacher: Teacher, schooling: Schooling, folder: Path) -> TeacherCache | None:
    """Open what `keep_predictions` wrote; None where the configuration keeps none.

    Raises:
        FileNotFoundError, ValueError: as `TeacherCache.load`.
    """
    if schooling.config.top_k is None:
        return None
    origin = _origin(teacher, schooling)
    return TeacherCache.load(folder, schooling.windows(), origin=origin)


def check_teacher(teacher: Teacher, schooling: Schooling) -> None:
    """Refuse what cannot teach.

    Raises:
        ValueError: it is no dense model, the shards are of another tokenizer or vocabulary, or
            windows or answers are too long for it.
    """
    config, tokens_dir = schooling.config, schooling.tokens_dir
    shard = open_split(tokens_dir, "train")
    checkpoint, model = teacher.checkpoint, teacher.checkpoint.model.config
    if checkpoint.tokenizer_sha256 != shard.tokenizer_sha256:
        raise ValueError(
            f"{tokens_dir} was made with another tokenizer than {teacher.origin} was trained with; "
            "set tokenizer.from_file to the model's own, or restore its tokenizer, and run the "
            "stages from tokenize on again"
        )
    if checkpoint.quant is not None:
        raise ValueError(
            f"{teacher.origin} is on the grid {checkpoint.quant.grid}; evolution starts from a "
            "dense model"
        )
    check_shape(model, schooling.train, vocab_size=shard.vocab_size)
    if config.answer_length > model.context:
        raise ValueError(
            f"evolve.answer_length={config.answer_length} is longer than model.context="
            f"{model.context}; lower the first or raise the second"
        )
    if config.top_k is not None and config.top_k >= model.vocab_size:
        raise ValueError(
            f"evolve.top_k={config.top_k} of {model.vocab_size} tokens leaves none out; lower it, "
            "or set it to null"
        )


def _origin(teacher: Teacher, schooling: Schooling) -> TaughtBy:
    manifest = require(schooling.tokens_dir / "manifest.json", made_by="tokenize")
    return TaughtBy(
        teacher=teacher.weights_sha256,
        tokens=sha256(manifest),
        context=schooling.train.context,
        seed=schooling.seed,
        top_k=schooling.config.top_k or 0,
    )
