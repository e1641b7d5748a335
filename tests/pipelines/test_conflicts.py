"""Things that do not belong together, two runs at once, and folders that cannot be written."""

import os
import shutil
from pathlib import Path

import pytest
from tests.pipelines.conftest import RunStage, StartStage, places
from tests.pipelines.watching import contents, wait_until

TERNARY = ("pretrain", *places("data/checkpoints/ternary"), "variant=ternary")


def refused(run_stage: RunStage, folder: Path, *arguments: str) -> str:
    """Run a stage that must refuse and change nothing; return what it printed."""
    before = contents(folder)
    outcome = run_stage(folder, *arguments)
    assert outcome.status == 1, outcome.text
    assert "Traceback" not in outcome.text
    assert contents(folder) == before
    return outcome.text


def test_shards_of_another_tokenizer_are_refused_by_all_that_use_old_models(
    chain: Path, run_stage: RunStage
) -> None:
    other = "tokenizer.vocab_size=430"
    assert run_stage(chain, "tokenization", *places("data/tokens"), other).status == 0
    for arguments, words in (
        (TERNARY, "model.vocab_size=420, but the token shards have 430 ids"),
        (("evolve", *places("data/evolved")), "another tokenizer than data/checkpoints/dense was"),
        (("pack", *places("data/packed")), "data/checkpoints/dense was trained with another"),
        (("evaluate", *places("data/evaluation")), "holds another tokenizer than the token shards"),
    ):
        assert words in refused(run_stage, chain, *arguments), arguments


def test_a_checkpoint_of_another_size_is_refused(chain: Path, run_stage: RunStage) -> None:
    wider = "model.width=64"
    words = "data/checkpoints/dense holds another model than the section model says: width=32, not"
    for script, out in (("evolve", "data/evolved"), ("pack", "data/packed")):
        assert words in refused(run_stage, chain, script, *places(out), wider)
    assert run_stage(chain, *TERNARY, wider).status == 0
    assert "checkpoints/ternary holds another model" in refused(
        run_stage, chain, "pack", *places("data/packed")
    )


def test_windows_and_answers_longer_than_the_twin_are_refused(
    finished_chain: Path, run_stage: RunStage
) -> None:
    for override in ("train.context=65", "evolve.answer_length=65"):
        text = refused(run_stage, finished_chain, "evolve", *places("data/evolved"), override)
        assert f"{override} is longer than model.context=64" in text


def test_a_second_run_on_the_same_output_or_the_same_work_is_refused(
    chain: Path, run_stage: RunStage, start_stage: StartStage
) -> None:
    shutil.rmtree(chain / "data/checkpoints/ternary")
    shutil.rmtree(chain / "runs/resume", ignore_errors=True)
    long = "pretrain.num_steps=100000"
    first = start_stage(chain, *TERNARY, long)
    try:
        wait_until(lambda: list((chain / "runs/resume").glob("*/step-*.ckpt")))
        same_place = run_stage(chain, *TERNARY)
        same_work = run_stage(
            chain, "pretrain", "variant=ternary", long, *places("elsewhere/dense")
        )
    finally:
        first.process.kill()
        first.process.join()
    assert same_place.status == same_work.status == 1
    assert "another process is writing to data/checkpoints/ternary" in same_place.text
    assert "another process is writing to runs/resume/" in same_work.text
    assert "Traceback" not in same_place.text + same_work.text
    assert run_stage(chain, *TERNARY).status == 0, "the lock of a dead process holds nobody up"


def test_an_output_below_a_file_is_refused(finished_chain: Path, run_stage: RunStage) -> None:
    arguments = (
        "curate",
        "out_dir=texts/module_00.py/corpus",
        "metrics_dir=reports/metrics/curate",
    )
    text = refused(run_stage, finished_chain, *arguments)
    assert "texts/module_00.py" in text
    assert "give another place" in text


def test_a_read_only_output_folder_is_refused(chain: Path, run_stage: RunStage) -> None:
    (chain / "data").chmod(0o555)
    if os.access(chain / "data", os.W_OK):
        pytest.skip("this user, root perhaps, may write everywhere")
    try:
        text = refused(run_stage, chain, "curate", *places("data/corpus"))
    finally:
        (chain / "data").chmod(0o755)
    assert "Permission denied" in text
    assert "data/" in text
