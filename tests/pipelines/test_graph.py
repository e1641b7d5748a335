"""The graph under the real DVC, in a copy of this repository: what runs, when, and what it leaves.

One project for all tests, which go on where the one before stopped; each leaves it committed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from tests.pipelines.conftest import ROOT, TOY, write_texts
from tests.pipelines.test_dependencies import STAGES
from tests.pipelines.watching import wait_until

pytestmark = pytest.mark.slow

# DVC writes a stage of a matrix with @, and runs all of them in this order or another that fits.
NAMES = {re.sub("^pretrain-", "pretrain@", stage.name) for stage in STAGES}
# What the copied package prints on import, and the installed one does not.
FROM_COPY = "imported from the copy"
UP_TO_DATE = "Data and pipelines are up to date."


class Project(NamedTuple):
    """A repository with its first `dvc repro` behind it, and what that printed."""

    folder: Path
    first_run: str

    def run(self, *command: str) -> str:
        """Run a command in the project; it must pass."""
        return run(self.folder, *command)

    def untracked(self) -> list[str]:
        """Files that git neither tracks nor ignores."""
        return self.run("git", "ls-files", "--others", "--exclude-standard").split()

    def commit(self) -> None:
        """Commit everything there is."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "next")


def run(folder: Path, *command: str) -> str:
    """Run a command; return what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """The environment of a command in a project."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache"),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def stages_run(printed: str) -> set[str]:
    """Names of the stages that DVC ran."""
    return set(re.findall(r"Running stage '([^']+)'", printed))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of this repository at toy size, built once by `dvc repro`."""
    folder = tmp_path_factory.mktemp("graph") / "project"
    for name in run(ROOT, "git", "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    write_texts(folder / "texts")
    with (folder / "src/trilith/__init__.py").open("a") as file:
        file.write(f"\nprint('{FROM_COPY}')\n")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    toy = [override for override in TOY if not override.startswith("tracking=")]
    (folder / "params.yaml").write_text(yaml.safe_dump(params | {"overrides": toy}))
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "config", "user.name", "Test")
    run(folder, "git", "config", "user.email", "test@example.com")
    before = Project(folder, "")
    before.commit()
    return Project(folder, before.run("dvc", "repro"))


def test_every_stage_passes_and_leaves_what_it_declares(project: Project) -> None:
    assert stages_run(project.first_run) == NAMES
    assert project.first_run.count(FROM_COPY) == len(NAMES), "a stage imports another tree"
    outs = [out for stage in STAGES for out in stage.outs]
    for out in outs:
        place = project.folder / out
        assert place.is_file() or any(place.iterdir()), out
    for name in project.untracked():
        assert name == "dvc.lock" or any(f"{name}/".startswith(f"{out}/") for out in outs), name
    lock = (project.folder / "dvc.lock").read_text()
    assert str(project.folder) not in lock
    assert not re.search(r"(path: |=|\s)/", lock), "an absolute path"
    project.commit()


def test_a_second_run_does_nothing(project: Project) -> None:
    printed = project.run("dvc", "repro")
    assert not stages_run(printed)
    assert UP_TO_DATE in printed
    assert UP_TO_DATE in project.run("dvc", "status")
    assert not project.run("git", "status", "--porcelain")


def test_a_value_reruns_the_stages_that_read_it_and_those_after(project: Project) -> None:
    replace(
        project.folder / "conf/config.yaml", "sample_temperature: 0.7", "sample_temperature: 0.6"
    )
    assert stages_run(project.run("dvc", "repro")) == {"configure", "evaluate", "report"}
    differences = project.run("dvc", "params", "diff")
    assert re.search(r"evaluate\.sample_temperature +0\.7 +0\.6", differences)
    project.run("dvc", "metrics", "diff")
    assert not project.untracked()
    project.commit()


def test_another_model_reruns_nothing_but_configure(project: Project) -> None:
    replace(project.folder / "conf/model/micro.yaml", "num_layers: 6", "num_layers: 7")
    assert stages_run(project.run("dvc", "repro")) == {"configure"}
    assert UP_TO_DATE in project.run("dvc", "status")
    project.commit()


def test_evolution_code_reruns_no_pretraining(project: Project) -> None:
    code = project.folder / "src/trilith/training/evolve.py"
    code.write_text(f"{code.read_text()}\n# changed\n")
    would_run = stages_run(project.run("dvc", "repro", "--dry"))
    assert {"configure", "evolve"} <= would_run
    assert not any(name.startswith("pretrain") for name in would_run)
    project.run("git", "checkout", "--", ".")


def test_plots_are_drawn(project: Project) -> None:
    project.run("dvc", "plots", "show")
    page = (project.folder / "dvc_plots" / "index.html").read_text()
    assert "steps.csv" in page
    assert not project.untracked()


def test_an_experiment_runs_what_it_changes(project: Project) -> None:
    overrides = yaml.safe_load((project.folder / "params.yaml").read_text())["overrides"]
    changed = [o for o in overrides if "sample_tokens" not in o] + ["evaluate.sample_tokens=5"]
    quoted = ",".join(f'"{override}"' for override in changed)
    printed = project.run("dvc", "exp", "run", "--name", "longer", "-S", f"overrides=[{quoted}]")
    assert stages_run(printed) == {"configure", "evaluate", "report"}
    assert not project.untracked()
    table = project.run("dvc", "exp", "show", "--csv")
    assert "longer" in table
    assert "evaluate.sample_tokens" in table
    project.run("git", "checkout", "--", ".")
    project.run("dvc", "checkout")
    assert UP_TO_DATE in project.run("dvc", "status")
    assert not project.run("git", "status", "--porcelain")


def test_a_sweep_by_hand_stays_below_runs(project: Project) -> None:
    sweep = "corpus.duplicates.threshold=0.7,0.8"
    project.run("python", "pipelines/curate.py", "-m", sweep)
    made = project.folder.glob("runs/sweeps/curate/*/*/out/documents.parquet")
    assert {path.parts[-3] for path in made} == {"0", "1"}
    assert "threshold: 0.7" in project.run("python", "pipelines/curate.py", sweep[:-4], "--cfg=job")
    assert UP_TO_DATE in project.run("dvc", "status")
    assert not project.run("git", "status", "--porcelain")


def test_a_killed_repro_goes_on_by_the_same_command(project: Project) -> None:
    replace(project.folder / "params.yaml", "pretrain.num_steps=6", "pretrain.num_steps=100")
    command = ("dvc", "repro", "pretrain@ternary")
    killed = subprocess.Popen(
        command, cwd=project.folder, env=environment(project.folder), start_new_session=True
    )
    wait_until(lambda: list(project.folder.glob("runs/resume/*/step-*.ckpt")))
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    printed = project.run(*command)
    assert stages_run(printed) == {"pretrain@ternary"}
    assert "ternary: goes on from runs/resume/" in printed
    assert UP_TO_DATE in project.run("dvc", "status", "pretrain@ternary")
    curve = project.folder / "reports/metrics/pretrain/ternary/steps.csv"
    assert len(curve.read_text().splitlines()) == 101


def replace(path: Path, old: str, new: str) -> None:
    """Change a file in one place."""
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))
