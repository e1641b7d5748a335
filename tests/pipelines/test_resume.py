"""A run that was killed ends, by the same command, with the bits of one that never was."""

import csv
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from tests.pipelines.conftest import Fault, Outcome, RunStage, StartStage, places
from tests.pipelines.watching import wait_until
from tests.training.test_tracking import records

STEPS = ("pretrain.num_steps=60", "train.validate_every=20")
PRETRAIN = ("pretrain", "variant=ternary", *places("data/checkpoints/ternary"), *STEPS)
EVOLVE = (
    "evolve",
    *places("data/evolved"),
    "evolve.phases.prime7.num_steps=8",
    "evolve.phases.ternary.num_steps=40",
)


def kill_once_there(project: Path, pattern: str, start_stage: StartStage, *arguments: str) -> None:
    """Start a stage, kill it as soon as a file of this pattern is in its resume folder."""
    running = start_stage(project, *arguments)
    wait_until(lambda: list((project / "runs/resume").glob(pattern)))
    running.process.kill()
    outcome = running.end()
    assert outcome.status == -signal.SIGKILL, outcome.text


def losses(path: Path) -> list[tuple[str, str]]:
    """Step and loss of every row, as text: equal text is equal bits."""
    with path.open(newline="") as file:
        return [(row["step"], row["loss_nats"]) for row in csv.DictReader(file)]


def same_bytes(one: Path, other: Path, name: str) -> bool:
    """True if a file is the same in two folders."""
    return (one / name).read_bytes() == (other / name).read_bytes()


def fresh(chain: Path, name: str, out: str) -> Path:
    """Another copy of the project, without the output."""
    project = Path(shutil.copytree(chain, chain.parent / name))
    shutil.rmtree(project / out)
    shutil.rmtree(project / "runs")
    return project


@pytest.mark.parametrize("interval", [5, 20, 60], ids=lambda n: f"saved every {n} steps")
def test_pretraining_killed_in_the_middle_ends_with_the_same_bits(
    chain: Path, run_stage: RunStage, start_stage: StartStage, interval: int
) -> None:
    # Validation comes after saving, at steps 20, 40 and 60: the kill falls between the two.
    arguments = (*PRETRAIN, f"train.checkpoint_every={interval}")
    out = "data/checkpoints/ternary"
    whole, killed = fresh(chain, "whole", out), fresh(chain, "killed", out)
    outcome = run_stage(whole, *arguments)
    assert outcome.status == 0, outcome.text
    kill_once_there(killed, "*/step-*.ckpt", start_stage, *arguments)
    assert not (killed / out).exists()
    outcome = run_stage(killed, *arguments)
    assert outcome.status == 0, outcome.text
    assert "ternary: goes on from runs/resume/" in outcome.text
    assert_same_run(whole, killed, num_steps=60)


def assert_same_run(whole: Path, killed: Path, *, num_steps: int) -> None:
    """Both projects hold the same ternary twin and curves to the bit, and no resume state."""
    out = "data/checkpoints/ternary"
    assert same_bytes(whole / out, killed / out, "model.safetensors")
    assert same_bytes(whole / out, killed / out, "config.json")
    curve = Path("reports/metrics/pretrain/ternary/steps.csv")
    assert losses(killed / curve) == losses(whole / curve)
    assert [int(step) for step, _ in losses(killed / curve)] == list(range(1, num_steps + 1))
    assert same_bytes(whole, killed, str(curve.with_name("validation.csv")))
    assert not list((killed / "runs/resume").glob("*")), "the resume state is gone after success"


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits_in_one_history(
    chain: Path, run_stage: RunStage, start_stage: StartStage
) -> None:
    out = "data/checkpoints/ternary"
    whole, killed = fresh(chain, "whole", out), fresh(chain, "killed", out)
    longer = (*PRETRAIN, "pretrain.num_steps=150", "train.checkpoint_every=6")
    outcome = run_stage(whole, *longer)
    assert outcome.status == 0, outcome.text
    moments = random.Random(7)
    for _ in range(3):
        outcome = killed_at(moments.uniform(0, 0.2), killed, start_stage, *longer)
        assert outcome.status == -signal.SIGKILL, f"it ended before it was killed: {outcome.text}"
        assert not (killed / out).exists()
    outcome = run_stage(killed, *longer, "tracking=offline")
    assert outcome.status == 0, outcome.text
    assert "ternary: goes on from runs/resume/" in outcome.text
    assert_same_run(whole, killed, num_steps=150)
    histories = sorted((killed / "runs/wandb").glob("offline-run-*"))
    assert len({path.name.split("-", 3)[-1] for path in histories}) == 1, "not one run id"
    assert len(histories) == 4
    assert set().union(*map(logged_steps, histories)) == set(range(1, 151))


def killed_at(delay_s: float, project: Path, start_stage: StartStage, *arguments: str) -> Outcome:
    """Start a stage; kill it so long after it has saved a state of its own."""
    before = states(project)
    running = start_stage(project, *arguments, "tracking=offline")
    wait_until(lambda: states(project) - before)
    time.sleep(delay_s)
    running.process.kill()
    return running.end()


def states(project: Path) -> set[str]:
    """Names of the saved states of a project's runs."""
    return {path.name for path in (project / "runs/resume").glob("*/step-*.ckpt")}


def logged_steps(run_dir: Path) -> set[int]:
    """Steps in the history of an offline W&B run."""
    history = [record["history"]["item"] for record in records(run_dir) if "history" in record]
    return {item["train/step"] for item in history if "train/step" in item}


@pytest.mark.slow
def test_a_run_killed_while_it_saves_ends_with_the_same_bits(
    chain: Path, run_stage: RunStage
) -> None:
    out = "data/checkpoints/ternary"
    whole = fresh(chain, "whole", out)
    often = (*PRETRAIN, "train.checkpoint_every=6")
    outcome = run_stage(whole, *often)
    assert outcome.status == 0, outcome.text
    faults: dict[Fault, tuple[int, int]] = {
        "killed in mid-write": (12, 1),
        "killed before the rename": (12, 1),
        "killed after the rename": (18, 0),
    }
    for number, (fault, (newest, num_partial)) in enumerate(faults.items()):
        killed = fresh(chain, f"killed-{number}", out)
        outcome = run_stage(killed, *often, fault=fault)
        assert outcome.status == -signal.SIGKILL, outcome.text
        assert max(states(killed)) == f"step-{newest:08d}.ckpt"
        assert len(list((killed / "runs/resume").glob("*/.step-*.partial-*"))) == num_partial
        outcome = run_stage(killed, *often)
        assert outcome.status == 0, outcome.text
        assert re.search(rf"ternary: goes on from .*step-{newest:08d}", outcome.text)
        assert "is damaged" not in outcome.text
        assert_same_run(whole, killed, num_steps=60)


def test_evolution_killed_in_its_second_phase_repeats_no_finished_phase(
    chain: Path, run_stage: RunStage, start_stage: StartStage
) -> None:
    out = "data/evolved"
    whole, killed = fresh(chain, "whole", out), fresh(chain, "killed", out)
    outcome = run_stage(whole, *EVOLVE)
    assert outcome.status == 0, outcome.text
    assert "evolved_prime7: validation loss" in outcome.text
    kill_once_there(killed, "*/evolved_ternary/step-*.ckpt", start_stage, *EVOLVE)
    assert not (killed / out).exists()
    outcome = run_stage(killed, *EVOLVE)
    assert outcome.status == 0, outcome.text
    assert "evolved_prime7: validation loss" not in outcome.text
    assert "evolved_ternary: goes on from" in outcome.text
    models = sorted(path.name for path in (whole / out).iterdir())
    assert models == [
        "dense_continued_prime7",
        "dense_continued_ternary",
        "evolved_prime7",
        "evolved_ternary",
    ]
    for model in models:
        assert same_bytes(whole / out, killed / out, f"{model}/model.safetensors"), model
        curve = f"reports/metrics/evolve/curves/{model}/steps.csv"
        assert losses(killed / curve) == losses(whole / curve)


def test_training_is_not_lost_when_its_output_cannot_be_written(
    chain: Path, run_stage: RunStage
) -> None:
    nowhere = "out_dir=texts/module_00.py/models"
    for arguments in (PRETRAIN, EVOLVE):
        outcome = run_stage(chain, *arguments, nowhere)
        assert outcome.status == 1, outcome.text
        assert "give another place" in outcome.text
        outcome = run_stage(chain, *arguments)
        assert outcome.status == 0, outcome.text
        if arguments is PRETRAIN:
            assert "ternary: goes on from" in outcome.text
        else:
            assert "validation loss" not in outcome.text, "a finished phase was repeated"


def test_another_setting_does_not_go_on_from_the_old_state(
    chain: Path, run_stage: RunStage, start_stage: StartStage
) -> None:
    out = "data/checkpoints/ternary"
    whole, killed = fresh(chain, "whole", out), fresh(chain, "killed", out)
    changed = (*PRETRAIN, "pretrain.ternary.recipe.peak_lr=0.001")
    assert run_stage(whole, *changed).status == 0
    kill_once_there(killed, "*/step-*.ckpt", start_stage, *PRETRAIN)
    outcome = run_stage(killed, *changed)
    assert outcome.status == 0, outcome.text
    assert "goes on from" not in outcome.text
    assert same_bytes(whole / out, killed / out, "model.safetensors")
