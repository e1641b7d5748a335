"""Output is whole or not there, whoever is stopped or killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trilith.files import replacing


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with replacing(path) as partial:
            partial.mkdir()
            (partial / name).touch()
    assert [each.name for each in path.iterdir()] == ["new"]


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    left = tmp_path / f".file.partial-{killed.pid}"
    in_use = tmp_path / f".file.partial-{os.getppid()}"
    of_another = tmp_path / f".another.partial-{killed.pid}"
    for partial in (left, in_use, of_another):
        partial.mkdir()
    with replacing(tmp_path / "file") as partial:
        partial.touch()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"file", in_use.name, of_another.name}
