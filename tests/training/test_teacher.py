"""The teacher's predictions on disk: those of the teacher, for the right windows, or refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.conftest import pattern, toy_model

from trilith.evolution import top_predictions
from trilith.model import ModelConfig
from trilith.training.batches import TokenWindows
from trilith.training.teacher import TaughtBy, TeacherCache, teach

ORIGIN = TaughtBy({"model.safetensors": "a"}, tokens="b", context=16, seed=1, top_k=5)


def windows() -> TokenWindows:
    return TokenWindows(pattern(400), context=16, batch_size=4, seed=1)


def test_every_batch_gets_what_the_teacher_says_of_it(toy: ModelConfig, tmp_path: Path) -> None:
    teacher = toy_model(toy, None).eval()
    metrics = teach(teacher, windows(), num_windows=10_000, origin=ORIGIN, out_dir=tmp_path / "t")
    assert metrics["teacher/num_windows"] == windows().num_windows == 24
    assert 0 < metrics["teacher/kept_probability"] < 1
    size = sum(path.stat().st_size for path in (tmp_path / "t").iterdir())
    assert metrics["teacher/file_bytes"] == size
    cache = TeacherCache.load(tmp_path / "t", windows(), origin=ORIGIN)
    # The second epoch has the same windows in another order.
    for position in (0, 5, 6, 11):
        found = cache.predictions(position)
        with torch.no_grad():
            expected = top_predictions(teacher(windows().batch(position).inputs_BT), top_k=5)
        assert found is not None
        assert torch.equal(found.ids_BTK, expected.ids_BTK)
        # Half precision: 11 bits.
        torch.testing.assert_close(found.log_probs_BTK, expected.log_probs_BTK, rtol=1e-3, atol=0)


def test_windows_that_were_not_kept_are_not_made_up(toy: ModelConfig, tmp_path: Path) -> None:
    teacher = toy_model(toy, None).eval()
    teach(teacher, windows(), num_windows=6, origin=ORIGIN, out_dir=tmp_path / "t")
    cache = TeacherCache.load(tmp_path / "t", windows(), origin=ORIGIN)
    assert cache.predictions(0) is not None
    assert cache.predictions(1) is None


@pytest.mark.parametrize(("num_windows", "top_k"), [(0, 5), (0, 0)])
def test_nothing_to_keep_is_an_empty_list(
    toy: ModelConfig, tmp_path: Path, num_windows: int, top_k: int
) -> None:
    teacher, origin = toy_model(toy, None).eval(), replace(ORIGIN, top_k=top_k)
    out_dir = tmp_path / "t"
    metrics = teach(teacher, windows(), num_windows=num_windows, origin=origin, out_dir=out_dir)
    assert metrics["teacher/num_windows"] == 0
    assert "teacher/kept_probability" not in metrics
    assert TeacherCache.load(out_dir, windows(), origin=origin).predictions(0) is None


def test_a_full_disk_is_seen_before_the_first_window(
    toy: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4 windows of 16 tokens with 5 predictions of 2 + 2 bytes.
    usage = shutil.disk_usage(tmp_path)._replace(free=1279)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    teacher = toy_model(toy, None).eval()
    with pytest.raises(ValueError, match="need 1,280 bytes and 1,279 are free"):
        teach(teacher, windows(), num_windows=4, origin=ORIGIN, out_dir=tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": {"model.safetensors": "c"}}, "teacher={'model.safetensors': 'a'}"),
        ({"tokens": "c"}, "tokens=b and the evolution needs tokens=c"),
        ({"seed": 2}, "seed=1"),
        ({"top_k": 6}, "top_k=5"),
    ],
)
def test_predictions_of_another_teacher_or_order_are_refused(
    toy: ModelConfig, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    teacher = toy_model(toy, None).eval()
    teach(teacher, windows(), num_windows=4, origin=ORIGIN, out_dir=tmp_path / "t")
    with pytest.raises(ValueError, match=f"{words}.*run the stage teach again"):
        TeacherCache.load(tmp_path / "t", windows(), origin=replace(ORIGIN, **change))  # type: ignore[arg-type]


def test_missing_and_cut_files_are_named(toy: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="teach makes it"):
        TeacherCache.load(tmp_path / "t", windows(), origin=ORIGIN)
    teacher = toy_model(toy, None).eval()
    teach(teacher, windows(), num_windows=4, origin=ORIGIN, out_dir=tmp_path / "t")
    np.save(tmp_path / "t" / "ids.npy", np.zeros((3, 16, 5), dtype=np.uint16))
    with pytest.raises(ValueError, match="is damaged; run the stage teach again"):
        TeacherCache.load(tmp_path / "t", windows(), origin=ORIGIN)
