"""One metrics tree and one report for the tests that only read them."""

import shutil
from pathlib import Path

import pytest
from tests.reporting.synthetic import write_tree

from trilith.reporting import ReportFiles, write_report


@pytest.fixture(scope="session")
def finished_metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete metrics tree; tests must not change it."""
    return write_tree(tmp_path_factory.mktemp("metrics"))


@pytest.fixture
def metrics(finished_metrics: Path, tmp_path: Path) -> Path:
    """A complete metrics tree that a test may damage."""
    return Path(shutil.copytree(finished_metrics, tmp_path / "metrics"))


@pytest.fixture(scope="session")
def report(finished_metrics: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    """The report of the complete tree, in a folder with an older figure and another's file."""
    out_dir = tmp_path_factory.mktemp("report")
    (out_dir / "figures").mkdir()
    (out_dir / "figures" / "stale.svg").write_text("<svg/>")
    (out_dir / "config.yaml").write_text("seed: 1\n")
    return write_report(finished_metrics, out_dir=out_dir)
