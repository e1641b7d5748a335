"""Scores of what an evolution made: each model packed, read back and scored on test data."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from trilith.cli.project import compose_plan
from trilith.corpus import read_documents
from trilith.evaluation import HeldOut, score_answers, score_text
from trilith.evolution import (
    AnswerRows,
    Marks,
    SourceText,
    derive_instructions,
    encode_instructions,
)
from trilith.model import load_checkpoint
from trilith.packed import PackConfig, load_model
from trilith.packed.shelf import drawn_proof_tokens, pack_checkpoint
from trilith.tokens import Tokenizer, open_split

# Of the test split; scoring all of it would take longer than training.
TEST_TOKENS = 40_000
TEST_ANSWERS = 256
CONTEXT = 256


@dataclass(frozen=True)
class Scores:
    """Of one packed file: loss on test text, KL of the dense twin to it, loss on test answers.

    `num_steps` counts the optimizer steps since the dense twin.
    """

    loss_nats: float
    kl_nats: float
    answer_nats: float
    num_steps: int


class _Place(NamedTuple):
    """Where the twin and its tokens lie, and the tokens of an instruction with its answer."""

    dense: Path
    tokens: Path
    answer_length: int


def score_run(folder: Path, dense: Path, tokens: Path, *, answer_length: int) -> dict[str, Scores]:
    """Score the dense twin and every model in `folder/models`.

    Scores are kept: those of the models in the folder, those of the twin beside it, once for all.

    Args:
        folder: of the run.
        dense: checkpoint of the twin.
        tokens: shards, with the corpus beside them.
        answer_length: tokens of an instruction with its answer.
    """
    place = _Place(dense, tokens, answer_length)
    models = {path.name: path for path in sorted((folder / "models").iterdir())}
    twin_kept = dense.parent.parent / "dense_scores.json"
    twin = _kept_scores(twin_kept, {"dense": dense}, place)
    return twin | _kept_scores(folder / "scores.json", models, place)


def _kept_scores(kept: Path, checkpoints: dict[str, Path], place: _Place) -> dict[str, Scores]:
    """Score checkpoints by name, or read what was written of them."""
    if kept.is_file():
        return {name: Scores(**values) for name, values in json.loads(kept.read_text()).items()}
    base = load_checkpoint(place.dense, made_by="pretrain").provenance["num_steps"]
    with TemporaryDirectory(dir=kept.parent) as folder:
        twin = pack(place.dense, Path(folder) / "twin.safetensors", place.tokens)
        scores = {}
        for name, path in checkpoints.items():
            file = pack(path, Path(folder) / f"{name}.safetensors", place.tokens)
            scores[name] = _score(file, twin, place, num_steps=_num_steps(path) - base)
    kept.write_text(json.dumps({name: asdict(score) for name, score in scores.items()}, indent=2))
    return scores


def pack(checkpoint: Path, path: Path, tokens: Path) -> Path:
    """Pack a checkpoint by the project's choice; return the path."""
    model = load_checkpoint(checkpoint, made_by="evolve")
    pack_checkpoint(
        model,
        path=path,
        config=PackConfig(**compose_plan([])["pack"]),
        tokenizer=Tokenizer.load(tokens / "tokenizer.model"),
        proof_tokens=drawn_proof_tokens(model.model.config),
    )
    return path


def _num_steps(checkpoint: Path) -> int:
    return load_checkpoint(checkpoint, made_by="evolve").provenance["num_steps"]


def _score(file: Path, twin_file: Path, place: _Place, *, num_steps: int) -> Scores:
    model, twin = load_model(file), load_model(twin_file)
    shard = open_split(place.tokens, "test")
    # Bytes are not used: no bits per byte are asked for.
    held_out = HeldOut(shard.tokens[:TEST_TOKENS], num_bytes=1, context=CONTEXT)
    text = score_text(model, reference=twin, held_out=held_out, name=file.stem)
    rows = _answers(place)
    answers = score_answers(model, rows.tokens[:TEST_ANSWERS], rows.answer_mask[:TEST_ANSWERS])
    return Scores(text.loss_nats, text.kl_nats, answers, num_steps)


def _answers(place: _Place) -> AnswerRows:
    documents = read_documents(place.tokens.parent / "corpus" / "documents.parquet").to_pylist()
    texts = [
        SourceText(d["text"], d["language"], d["path"]) for d in documents if d["split"] == "test"
    ]
    tokenizer = Tokenizer.load(place.tokens / "tokenizer.model")
    return encode_instructions(
        derive_instructions(texts),
        encoder=tokenizer,
        marks=Marks.of(tokenizer),
        length=place.answer_length,
    )
