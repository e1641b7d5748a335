"""`trilith doctor`: every line has a status, and each status can happen."""

import platform
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from trilith.cli import main
from trilith.cli.doctor import (
    check_compiler,
    check_disk,
    check_program,
    check_python,
    check_threads,
    check_tracking,
    check_versions,
)


def test_each_line_has_a_status_and_the_exit_code_tells_of_failures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    code = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    statuses = {line.split()[1]: line.split()[0] for line in lines}
    names = [
        "python",
        "torch",
        "threads",
        "compiler",
        "kernels",
        "cpu",
        "gpu",
        "git",
        "dvc",
        "disk",
        "versions",
        "wandb",
    ]
    assert list(statuses) == names
    assert set(statuses.values()) <= {"ok", "warn", "fail"}
    assert statuses["wandb"] == "fail"
    assert statuses["python"] == statuses["torch"] == "ok"
    assert code == 1


@pytest.mark.parametrize(
    ("mode", "status"),
    [(None, "ok"), ("online", "ok"), ("offline", "ok"), ("disabled", "ok"), ("dryrun", "fail")],
)
def test_tracking_modes(mode: str | None, status: str) -> None:
    assert check_tracking(mode).status == status


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fail")],
    ids=str,
)
def test_python_versions(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], status: str
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    assert check_python().status == status


def test_versions_are_compared_without_their_local_part(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "constraints.txt"
    public = torch.__version__.partition("+")[0]
    path.write_text(f"# tested\ntorch=={public}  # with a remark\nnot-a-package-here==1.0\n")
    assert check_versions(path).status == "ok"
    assert "1 packages" in check_versions(path).text
    path.write_text("torch==0.0.1\n")
    check = check_versions(path)
    assert check.status == "warn"
    assert f"torch {public} (tested: 0.0.1)" in check.text
    assert check_versions(tmp_path / "none.txt").status == "warn"


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize(("free", "status"), [(10**8, "fail"), (5 * 10**9, "warn"), (10**11, "ok")])
def test_disk_space(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 0, free))
    assert check_disk(tmp_path).status == status


def test_missing_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    check = check_program("git", missing="install git")
    assert check.status == "fail"
    assert "install git" in check.text
    assert check_compiler().status == "warn"


def test_threads_count_what_the_process_may_use() -> None:
    check = check_threads()
    assert check.status in ("ok", "warn")
    assert "cores" in check.text


def test_a_python_version_is_shown() -> None:
    assert platform.python_version() in check_python().text
