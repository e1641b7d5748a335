"""Training goes on from a given checkpoint: the first loss is its own, or its refit's on a grid."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.imports.making import SHAPE, TEXT, drawn, write_huggingface, write_llama2c
from tests.training.conftest import RECIPE, TERNARY, TRAIN

from trilith.files import sha256
from trilith.imports import Source, open_source, write_import
from trilith.model import Transformer, load_checkpoint, move_to_grid
from trilith.quant import QuantConfig
from trilith.tokens import TokenizerConfig, open_split
from trilith.tokens.tokenization import tokenize_corpus
from trilith.training.batches import TokenWindows
from trilith.training.fit import RunPlace
from trilith.training.module import next_token_objective
from trilith.training.pretrain import PretrainPlan, Twin, pretrain

FITTED = QuantConfig("ternary", "least_squares", "row", None, 8)
Continue = Callable[..., dict[str, Any]]


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A llama2.c model, imported."""
    path = write_llama2c(tmp_path / "llama2c", drawn()[1])
    write_import(open_source(path), tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def tokens_dir(tmp_path: Path, imported: Path) -> Path:
    """A little text in the imported tokenizer's ids."""
    return tokenize(tmp_path, imported / "tokenizer.model")


def tokenize(folder: Path, tokenizer: Path) -> Path:
    splits = ["train", "train", "validation", "test"] * 4
    columns = {
        "id": [f"{number:064x}" for number in range(16)],
        "text": [f"{TEXT}{number} {TEXT}" for number in range(16)],
        "split": splits,
    }
    pq.write_table(pa.table(columns), folder / "documents.parquet")
    config = TokenizerConfig(300, None, None, None, None, 1, str(tokenizer))
    tokenize_corpus(config, documents=folder / "documents.parquet", out_dir=folder / "tokens")
    return folder / "tokens"


@pytest.fixture
def go_on(tokens_dir: Path, place: RunPlace, tmp_path: Path) -> Continue:
    """Train for some steps from a source; return the metrics."""

    def train(start: Source, quant: QuantConfig | None, **changes: Any) -> dict[str, Any]:
        plan = PretrainPlan(SHAPE, Twin(quant, replace(RECIPE, peak_lr=1e-4)), 4, start)
        return pretrain(
            plan._replace(**changes),
            config=TRAIN,
            tokens_dir=tokens_dir,
            out_dir=tmp_path / "out",
            place=place,
        )

    return train


@torch.no_grad()
def first_loss(model: Transformer, tokens_dir: Path) -> float:
    """Loss on the first batch of a run with seed 0."""
    tokens = open_split(tokens_dir, "train").tokens
    windows = TokenWindows(tokens, context=16, batch_size=4, seed=0)
    return float(next_token_objective(model, windows.batch(0)).nats)


def recorded_loss(place: RunPlace) -> float:
    """Loss of the first step, before any update."""
    with (place.metrics_dir / "steps.csv").open() as file:
        return float(next(csv.DictReader(file))["loss_nats"])


@pytest.mark.parametrize("quant", [None, FITTED, TERNARY], ids=["dense", "fitted", "absmean"])
def test_the_first_loss_is_that_of_the_checkpoint_on_its_grid(
    imported: Path, tokens_dir: Path, place: RunPlace, go_on: Continue, quant: QuantConfig | None
) -> None:
    model = load_checkpoint(imported, made_by="import").model
    expected = first_loss(move_to_grid(model, quant).eval(), tokens_dir)
    go_on(open_source(imported), quant)
    # Ternary scales are refined once before the first loss.
    assert recorded_loss(place) == pytest.approx(expected, rel=1e-6 if quant is None else 1e-2)


def test_a_hugging_face_folder_is_a_start_by_itself(tmp_path: Path, place: RunPlace) -> None:
    shape, weights = drawn()
    folder = write_huggingface(tmp_path / "small", weights, shape=shape)
    tokens_dir = tokenize(tmp_path, folder / "tokenizer.model")
    source = open_source(folder)
    plan = PretrainPlan(shape, Twin(None, RECIPE), 2, source)
    pretrain(plan, config=TRAIN, tokens_dir=tokens_dir, out_dir=tmp_path / "out", place=place)
    expected = first_loss(source.load().model, tokens_dir)
    assert recorded_loss(place) == pytest.approx(expected, rel=1e-6)


def test_a_run_goes_on_from_its_own_checkpoint_where_it_ended(
    imported: Path, tokens_dir: Path, place: RunPlace, go_on: Continue, tmp_path: Path
) -> None:
    go_on(open_source(imported), FITTED)
    (tmp_path / "out").rename(tmp_path / "before")
    ended = load_checkpoint(tmp_path / "before", made_by="pretrain")
    metrics = go_on(open_source(tmp_path / "before"), FITTED)
    expected = first_loss(ended.model, tokens_dir)
    assert recorded_loss(place) == pytest.approx(expected, rel=1e-3)
    after = load_checkpoint(tmp_path / "out", made_by="pretrain")
    assert after.provenance["num_steps"] == 8
    assert after.provenance["num_tokens_seen"] == 2 * metrics["train/num_tokens"]


def test_provenance_names_the_start_by_hash_and_no_path(
    imported: Path, go_on: Continue, tmp_path: Path
) -> None:
    go_on(open_source(imported), TERNARY)
    content = json.loads((tmp_path / "out/config.json").read_text())
    origin = content["provenance"]["started_from"]
    hashes = {"model.safetensors": sha256(imported / "model.safetensors")}
    assert origin == {"name": "small", "weights": hashes}
    assert content["provenance"]["imported"]["kind"] == "llama2.c"
    assert str(tmp_path) not in json.dumps(content)


def test_another_shape_is_refused_and_the_keys_are_named(imported: Path, go_on: Continue) -> None:
    wanted = replace(SHAPE, num_layers=2, norm_eps=1e-6)
    with pytest.raises(ValueError, match=r"start_from=.*num_layers=3, not 2, norm_eps=1e-05, not"):
        go_on(open_source(imported), None, model=wanted)


def test_another_tokenizer_is_refused(tmp_path: Path, go_on: Continue) -> None:
    folder = write_huggingface(tmp_path / "hf", drawn()[1])
    model = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(model + b"\x9a\x06\x00")
    source = open_source(folder)
    with pytest.raises(ValueError, match=r"set tokenizer\.from_file to the model's own tokenizer"):
        go_on(source.renamed("small"), None)
