"""Stages run as they are by hand: whole programs in their own process, at toy size."""

import itertools
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from filelock import FileLock

ROOT = Path(__file__).parents[2]
Fault = Literal[
    "none",
    "interrupt",
    "disk full",
    "killed in mid-write",
    "killed before the rename",
    "killed after the rename",
]

_MAX_FILE_BYTES = 1500
# What stages import: a process that is forked has it.
_PRELOADED = [
    *("datasets", "hydra", "lightning", "matplotlib.pyplot", "sentencepiece", "torch", "wandb"),
    *(f"trilith.{part}" for part in ("corpus", "evaluation", "reporting", "training")),
    *("trilith.imports", "trilith.packed", "hydra._internal.hydra", "requests"),
    "torch.distributed.checkpoint",
]

TOY = (
    "corpus=folder",
    "corpus.source.path=texts",
    "corpus.source.licence=mit",
    "tokenizer.vocab_size=420",
    "model.width=32",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.mlp_width=48",
    "model.context=64",
    "train.context=32",
    "train.micro_batch_size=4",
    "train.checkpoint_every=2",
    "train.validate_every=4",
    "train.validation_batches=2",
    "pretrain.num_steps=6",
    "pretrain.dense.recipe.warmup_steps=2",
    "pretrain.ternary.recipe.warmup_steps=2",
    "evolve.phases.prime7.num_steps=3",
    "evolve.phases.ternary.num_steps=3",
    "evolve.recipe.warmup_steps=1",
    "evolve.answer_length=64",
    "evaluate.prompt_tokens=8",
    "evaluate.decode_tokens=4",
    "evaluate.repeats=1",
    "evaluate.sample_tokens=4",
    "tracking=disabled",
    "hardware.threads=1",
    # To measure one takes longer than such a training.
    "hardware.peak_tflops=1",
)

# Each stage's script, its output, and what it is told beside the toy sizes.
STAGES = (
    ("curate", "data/corpus", ()),
    ("tokenization", "data/tokens", ()),
    ("pretrain", "data/checkpoints/dense", ("variant=dense",)),
    ("pretrain", "data/checkpoints/ternary", ("variant=ternary",)),
    ("teach", "data/teacher", ()),
    ("evolve", "data/evolved", ()),
    ("pack", "data/packed", ()),
    ("evaluate", "data/evaluation", ()),
    ("report", "reports", ()),
)


class Outcome(NamedTuple):
    """How a stage ended, and what it printed."""

    status: int
    text: str


class Running(NamedTuple):
    """A stage that was started."""

    process: BaseProcess
    output: Path

    def end(self) -> Outcome:
        """Wait for it."""
        self.process.join(120)
        assert self.process.exitcode is not None, f"{self.output.stem} hangs"
        return Outcome(self.process.exitcode, self.output.read_text())


RunStage = Callable[..., Outcome]
StartStage = Callable[..., Running]


def write_texts(folder: Path) -> None:
    """Write a small corpus of documented Python files, all different."""
    folder.mkdir(parents=True)
    for number in range(60):
        body = "\n\n".join(
            f"def compute_{number}_{part}(first, second={part}):\n"
            f'    """Compute the value of number {number} and part {part} of the table."""\n'
            f"    total = first * {number * 7 + part} + second\n"
            f"    return [total, '{chr(97 + number % 26) * part}', {number**3}]\n"
            for part in range(1, 9)
        )
        (folder / f"module_{number:02d}.py").write_text(f'"""Module {number}."""\n\n{body}')


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder to run stages in, with a corpus in `texts`."""
    write_texts(tmp_path / "texts")
    return tmp_path


@pytest.fixture(scope="session")
def start_stage() -> StartStage:
    """Start a stage's script in a folder: `start_stage(folder, script, *overrides, fault=...)`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    numbers = itertools.count()

    def start(folder: Path, script: str, *overrides: str, fault: Fault = "none") -> Running:
        output = folder / "printed" / f"{next(numbers)}-{script}.txt"
        output.parent.mkdir(exist_ok=True)
        arguments = (output, script, [*TOY, *overrides], fault)
        process = context.Process(target=_run_script, args=arguments)
        process.start()
        return Running(process, output)

    return start


@pytest.fixture(scope="session")
def run_stage(start_stage: StartStage) -> RunStage:
    """Run a stage's script as `start_stage` does, and wait for its end."""

    def run(*arguments: Any, fault: Fault = "none") -> Outcome:
        return start_stage(*arguments, fault=fault).end()

    return run


@pytest.fixture(scope="session")
def finished_chain(tmp_path_factory: pytest.TempPathFactory, run_stage: RunStage) -> Path:
    """A folder in which every stage has passed, for all workers. Copy it, do not change it."""
    of_this_worker = tmp_path_factory.getbasetemp()
    is_alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = (of_this_worker if is_alone else of_this_worker.parent) / "finished_chain"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            unfinished = tmp_path_factory.mktemp("chain")
            write_texts(unfinished / "texts")
            run_stages(run_stage, unfinished, until="reports")
            unfinished.rename(folder)
    return folder


@pytest.fixture
def chain(tmp_path: Path, finished_chain: Path) -> Path:
    """A copy of the finished chain to do anything with."""
    return Path(shutil.copytree(finished_chain, tmp_path / "chain"))


def run_stages(run_stage: RunStage, folder: Path, *, until: str) -> None:
    """Run the stages up to and with the one whose output is `until`; all must pass."""
    for script, out, extra in STAGES:
        outcome = run_stage(folder, script, *places(out), *extra)
        assert outcome.status == 0, outcome.text
        if out == until:
            return


def places(out: str) -> tuple[str, str]:
    """The output and metrics folders that dvc.yaml gives a stage."""
    name = Path(out).name
    metrics = {
        "dense": "pretrain/dense",
        "ternary": "pretrain/ternary",
        "corpus": "curate",
        "tokens": "tokenize",
        "teacher": "teach",
        "evolved": "evolve",
        "packed": "pack",
        "evaluation": "evaluate",
        "reports": "report",
    }[name]
    return f"out_dir={out}", f"metrics_dir=reports/metrics/{metrics}"


def _run_script(output: Path, script: str, overrides: list[str], fault: Fault) -> None:
    os.chdir(output.parent.parent)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if fault == "interrupt":
        _interrupt_at_the_first_rename()
    if fault == "disk full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    if fault.startswith("killed"):
        _kill_at_the_third_state(fault)
    sys.path.insert(0, str(ROOT / "pipelines"))
    sys.argv = [script, *overrides]
    runpy.run_path(str(ROOT / "pipelines" / f"{script}.py"), run_name="__main__")


def _interrupt_at_the_first_rename() -> None:
    """Press Ctrl-C at the worst moment: the output is complete and about to get its name."""
    rename = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        Path.replace = rename  # type: ignore[method-assign]
        os.kill(os.getpid(), signal.SIGINT)
        return rename(self, target)

    Path.replace = interrupted  # type: ignore[method-assign]


def _kill_at_the_third_state(fault: Fault) -> None:
    """SIGKILL while a training run saves its state, at a moment that no test could wait for."""
    save, rename = torch.save, Path.replace
    saves, renames = itertools.count(1), itertools.count(1)

    def killed_while_saving(content: Any, path: Path) -> None:
        save(content, path)
        if ".step-" not in path.name or next(saves) < 3 or fault == "killed after the rename":
            return
        if fault == "killed in mid-write":
            os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_after_renaming(self: Path, target: Path) -> Path:
        renamed = rename(self, target)
        if renamed.match("step-*.ckpt") and next(renames) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return renamed

    torch.save = killed_while_saving
    Path.replace = killed_after_renaming if fault == "killed after the rename" else rename  # type: ignore[method-assign]
