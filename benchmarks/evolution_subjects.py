"""The dense models whose evolution is measured, and the tokens that each of them knows."""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from training_runs import TEXT, Arm, Run, finish, prepare, tokens_dir
from trilith.imports import open_source, write_import
from trilith.model import load_checkpoint
from twins import DENSE, SIZES, dense_arm

VOCAB_SIZE = 2048


class Trained(NamedTuple):
    """A dense model that is trained first: on which corpus, how, for how many steps.

    `answer_length` is the tokens of an instruction with its answer.
    """

    corpus: str
    model: str
    arm: Arm
    num_steps: int
    answer_length: int = 128

    def tokens(self, work: Path) -> Path:
        """Where its shards lie, with the corpus beside them."""
        return tokens_dir(self.corpus, VOCAB_SIZE, work)

    def shape(self, work: Path) -> tuple[str, ...]:
        """Overrides that name its shape."""
        return (*SIZES[self.model], f"model={self.model}", f"tokenizer.vocab_size={VOCAB_SIZE}")

    def dense(self, seed: int, work: Path) -> Path:
        """Train it if it is not trained yet; return its checkpoint."""
        run = Run(
            self.corpus,
            VOCAB_SIZE,
            self.model,
            self.arm,
            seed,
            self.num_steps,
            SIZES[self.model],
        )
        return finish([run], work=work, jobs=1)[0] / "model"


class Imported(NamedTuple):
    """A dense model of another project; `name` is that of its folder in the work folder.

    Its tokens are short: the same text takes twice as many as with ours.
    """

    corpus: str
    path: Path
    name: str
    answer_length: int = 256

    def tokens(self, work: Path) -> Path:
        """Where its shards lie, with the corpus beside them."""
        return work / self.name / "tokens"

    def shape(self, work: Path) -> tuple[str, ...]:
        """Overrides that name its shape."""
        shape = asdict(load_checkpoint(self._checkpoint(work), made_by="import").model.config)
        named = tuple(f"model.{key}={value}" for key, value in shape.items())
        return ("model=nano", *self._tokenizer(work), *named)

    def dense(self, seed: int, work: Path) -> Path:
        """Import it if it is not there yet; return its checkpoint, the same for all seeds."""
        if not self._checkpoint(work).exists():
            write_import(open_source(self.path).renamed(self.name), self._checkpoint(work))
        prepare(self.corpus, work / self.name, *self._tokenizer(work))
        return self._checkpoint(work)

    def _checkpoint(self, work: Path) -> Path:
        return work / self.name / "model"

    def _tokenizer(self, work: Path) -> tuple[str, ...]:
        folder = self._checkpoint(work)
        size = open_source(self.path).model.vocab_size
        return (
            "tokenizer=imported",
            f"tokenizer.from_file={folder / 'tokenizer.model'}",
            f"tokenizer.vocab_size={size}",
        )


# A small model of the default corpus, one of 5 million weights on novels, and one that another
# project trained.
SUBJECTS: dict[str, Trained | Imported] = {
    "nano": Trained("stdlib", "nano", DENSE, 1500),
    "micro": Trained("novels", "micro", dense_arm("dense, Muon", "dense_muon"), 800),
    "stories260k": Imported(
        "tinystories",
        TEXT.parent / "models" / "stories260K" / "stories260K.bin",
        "stories260k",
    ),
}


def dense_checkpoints(name: str, seed: int, work: Path) -> Path:
    """Make the dense model of a subject if it is missing; return a folder with it as `dense`."""
    model = SUBJECTS[name].dense(seed, work)
    checkpoints = model.parent / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    if not (checkpoints / "dense").exists():
        (checkpoints / "dense").symlink_to(model.absolute())
    return checkpoints
