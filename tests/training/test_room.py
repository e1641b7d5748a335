"""A run that the disk cannot hold is refused before it starts; sizes are those of real files."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.training.conftest import RECIPE, TERNARY, TRAIN

from trilith import hardware
from trilith.model import Checkpoint, ModelConfig, build_model, save_checkpoint
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.memory import TrainingSetup, state_bytes
from trilith.training.resume import checkpoints
from trilith.training.room import Need, require_room, resume_bytes, warn_of_memory

WIDE = ModelConfig("wide", 400, 128, 2, 4, 2, "swiglu", 320, 64, 1e4, 1e-6, True, True, True)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def thousand_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with 1,000 bytes left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**6, 10**6 - 1000, 1000))


@pytest.mark.usefixtures("thousand_free")
def test_folders_on_one_disk_count_together(tmp_path: Path) -> None:
    here, there = tmp_path / "not/yet/here", tmp_path
    require_room([Need(here, 600), Need(there, 400)])
    with pytest.raises(ValueError, match="need 1,001 bytes and 1,000 are free") as refused:
        require_room([Need(here, 600), Need(there, 401)])
    assert str(here) in str(refused.value) and str(there) in str(refused.value)


def test_a_resume_state_is_as_large_as_planned(plan: Plan, place: RunPlace) -> None:
    # Long enough for a snapshot that holds moments; there are none at the first step.
    config = replace(TRAIN, checkpoint_every=4, validate_every=4, keep_last=1)
    fit(build_model(WIDE, TERNARY), plan=plan._replace(num_steps=8), config=config, place=place)
    state = state_bytes(WIDE, quant=TERNARY, optimizer=RECIPE.optimizer)
    best = next(place.resume_dir.glob("best-*.ckpt")).stat().st_size
    newest = checkpoints(place.resume_dir)[-1].stat().st_size
    empty = place.resume_dir / "empty"

    def planned(folder: Path, num_steps: int) -> int:
        return resume_bytes(state, folder, num_steps=num_steps, config=config)

    assert planned(empty, 3) == pytest.approx(2 * best, rel=0.05)
    assert planned(empty, 4) == pytest.approx(newest + 2 * best, rel=0.05)
    assert planned(empty, 99) == pytest.approx(2 * newest + 2 * best, rel=0.05)
    assert planned(place.resume_dir, 99) == planned(empty, 99) - newest - best


def test_a_result_is_as_large_as_planned(tmp_path: Path) -> None:
    model = build_model(WIDE, TERNARY)
    save_checkpoint(Checkpoint(model, TERNARY, "none", {}), tmp_path / "result")
    written = (tmp_path / "result/model.safetensors").stat().st_size
    planned = state_bytes(WIDE, quant=TERNARY, optimizer="adamw").weights
    assert planned == pytest.approx(written, rel=0.01)


def test_too_little_memory_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setup = TrainingSetup(
        WIDE, TERNARY, "adamw", "32-true", 64, 4, 1, "cpu", "tensors", "everything", 0.0
    )
    with caplog.at_level(logging.WARNING):
        warn_of_memory(setup, name="toy")
        assert not caplog.records
        monkeypatch.setattr("trilith.training.room.host_memory_bytes", lambda: 10**6)
        warn_of_memory(setup, name="toy")
    assert "toy: planned for 0.4 GB of memory where there are 0.0 GB" in caplog.text
    assert hardware.host_memory_bytes() > 10**6
