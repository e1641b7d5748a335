"""A foreign model through every stage: its tokenizer makes the shards, its weights the start."""

import csv
import json
from pathlib import Path

import pytest
import torch
from tests.imports.making import drawn, write_llama2c
from tests.pipelines.conftest import STAGES, RunStage, places

from trilith.imports import open_source, write_import
from trilith.model import load_checkpoint
from trilith.tokens import open_split
from trilith.training.batches import TokenWindows
from trilith.training.module import next_token_objective

STORIES = Path(__file__).parents[3] / "shared/data/models/stories260K/stories260K.bin"

# The sizes that the toy overrides would change, and the shape of the model that is imported.
_KEYS = ("name", "width", "num_layers", "num_heads", "num_kv_heads", "mlp_width", "context")
_MORE = ("rope_theta", "norm_eps", "qk_norm", "sub_norm", "tied_head")


def imported_model(folder: Path) -> tuple[str, ...]:
    """Import stories260K, or a random model where it is absent; return what stages are told."""
    path = STORIES if STORIES.is_file() else write_llama2c(folder / "foreign", drawn()[1])
    source = open_source(path)
    write_import(source, folder / "imported")
    shape = [f"model.{key}={getattr(source.model, key)}" for key in (*_KEYS, *_MORE)]
    return (
        "tokenizer=imported",
        "tokenizer.from_file=imported/tokenizer.model",
        f"tokenizer.vocab_size={source.model.vocab_size}",
        *shape,
        "recipe@pretrain.dense.recipe=continue",
        "recipe@pretrain.ternary.recipe=continue",
        "pretrain.start_from=imported",
        "evolve.teacher=imported",
    )


@torch.no_grad()
def first_loss(folder: Path) -> float:
    """Loss of the imported model on the first batch of the toy run."""
    model = load_checkpoint(folder / "imported", made_by="import").model
    tokens = open_split(folder / "data/tokens", "train").tokens
    windows = TokenWindows(tokens, context=32, batch_size=4, seed=0)
    return float(next_token_objective(model, windows.batch(0)).nats)


@pytest.mark.slow
def test_an_imported_model_goes_through_every_stage(project: Path, run_stage: RunStage) -> None:
    told = imported_model(project)
    for script, out, extra in STAGES:
        outcome = run_stage(project, script, *places(out), *extra, *told)
        assert outcome.status == 0, (script, outcome.text)
    with (project / "reports/metrics/pretrain/dense/steps.csv").open() as file:
        loss = float(next(csv.DictReader(file))["loss_nats"])
    assert loss == pytest.approx(first_loss(project), rel=1e-6)
    for made in ("checkpoints/ternary", "evolved/evolved_ternary"):
        config = json.loads((project / "data" / made / "config.json").read_text())
        assert config["provenance"]["imported"]["kind"] == "llama2.c"
        assert str(project) not in json.dumps(config)
    # The teacher evolves, not the twin that was trained on.
    assert config["provenance"]["num_steps"] == 6
    summary = json.loads((project / "reports/summary.json").read_text())
    assert {"dense", "ternary", "evolved_ternary"} <= set(summary["models"])


def test_a_wrong_start_is_one_clear_line_before_any_work(
    project: Path, run_stage: RunStage
) -> None:
    told = imported_model(project)
    assert run_stage(project, "curate", *places("data/corpus")).status == 0
    arguments = (*places("data/tokens"), *told)
    outcome = run_stage(project, "tokenization", *arguments, "tokenizer.vocab_size=299")
    assert outcome.status == 1
    assert "set tokenizer.vocab_size=" in outcome.text and "Traceback" not in outcome.text
    assert run_stage(project, "tokenization", *arguments).status == 0
    arguments = (*places("data/checkpoints/dense"), "variant=dense", *told)
    for override, text in (
        ("pretrain.start_from=nowhere", "nowhere does not exist"),
        ("pretrain.start_from=texts", "texts holds no config.json"),
        ("model.num_layers=7", "model says: num_layers="),
    ):
        outcome = run_stage(project, "pretrain", *arguments, override)
        assert outcome.status == 1
        assert text in outcome.text and "Traceback" not in outcome.text
        assert not (project / "data/checkpoints").exists()
