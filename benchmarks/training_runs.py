"""Training runs of a benchmark: corpora, arms and seeds; each run is `pipelines/pretrain.py`.

Runs take one thread each. Finished ones are kept in the work folder, so that a stopped benchmark
goes on. TinyStories and the novels are read from ../shared/data/text.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
TEXT = ROOT.parent / "shared/data/text"
PASSAGE_CHARACTERS = 8000
COMMON = (
    *("hardware.threads=1", "tracking=disabled", "train.context=256", "train.micro_batch_size=4"),
    *("train.validation_batches=64", "hardware.peak_tflops=1"),
)


class Arm(NamedTuple):
    """One way to train: its name in the tables and what it sets."""

    name: str
    variant: str
    overrides: tuple[str, ...] = ()


class Run(NamedTuple):
    """One training run."""

    corpus: str
    vocab_size: int
    model: str
    arm: Arm
    seed: int
    num_steps: int
    size: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        arm = "".join(c if c.isalnum() else "-" for c in self.arm.name)
        return f"{self.corpus}-{self.vocab_size}-{self.model}-{self.num_steps}-{arm}-{self.seed}"


def available(corpora: Sequence[str]) -> list[str]:
    """Return the corpora that this machine has; say which it lacks."""
    present = [corpus for corpus in corpora if corpus == "stdlib" or (TEXT / corpus).is_dir()]
    for corpus in [corpus for corpus in corpora if corpus not in present]:
        print(f"{corpus} is skipped: {TEXT / corpus} does not exist", file=sys.stderr)
    return present


def finish(runs: list[Run], *, work: Path, jobs: int) -> list[Path]:
    """Run what is not finished yet, `jobs` at a time; return the folders with their metrics."""
    for corpus, vocab_size in dict.fromkeys((run.corpus, run.vocab_size) for run in runs):
        folder = tokens_dir(corpus, vocab_size, work).parent
        prepare(corpus, folder, f"tokenizer.vocab_size={vocab_size}")
    with ThreadPoolExecutor(jobs) as pool:
        folders = pool.map(lambda run: _finish_one(run, work), runs)
        return list(tqdm(folders, total=len(runs), unit="run"))


def tokens_dir(corpus: str, vocab_size: int, work: Path) -> Path:
    """Return where the shards of a corpus lie."""
    return work / f"{corpus}-{vocab_size}" / "tokens"


def prepare(corpus: str, folder: Path, *tokenizer: str) -> None:
    """Curate and tokenize a corpus in a folder, once; `tokenizer` are overrides that choose it."""
    tokens = folder / "tokens"
    if (tokens / "manifest.json").is_file():
        return
    source = ["corpus=stdlib"]
    if corpus != "stdlib":
        texts = folder / "texts.jsonl"
        texts.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"text": text}) for text in _texts(corpus))
        texts.write_text("\n".join(lines) + "\n")
        source = [
            *("corpus=dataset", "corpus.source.name=json", "corpus.gates.min_letter_share=0"),
            *("corpus.source.licence=cc0-1.0", f"corpus.source.data_files=[{texts}]"),
        ]
    run_stage("curate", *source, f"out_dir={folder}/corpus", f"metrics_dir={folder}/curate")
    place = (f"inputs.corpus={folder}/corpus", f"out_dir={tokens}")
    run_stage("tokenization", *place, *tokenizer, f"metrics_dir={folder}/tokenize")


def _texts(corpus: str) -> Iterator[str]:
    if corpus == "tinystories":
        stories = (TEXT / "tinystories/train.txt").read_text().split("<|endoftext|>")
        yield from (story.strip() + "\n" for story in stories if story.strip())
        return
    for path in sorted((TEXT / corpus).glob("*.txt")):
        passage = ""
        for line in path.read_text(encoding="utf-8-sig").splitlines(keepends=True):
            passage += line
            if len(passage) > PASSAGE_CHARACTERS:
                yield passage
                passage = ""


def _finish_one(run: Run, work: Path) -> Path:
    folder = work / "runs" / run.key
    if not (folder / "metrics.json").is_file():
        tokens = tokens_dir(run.corpus, run.vocab_size, work)
        place = (f"inputs.tokens={tokens}", f"out_dir={folder}/model", f"metrics_dir={folder}")
        size = (f"model={run.model}", f"tokenizer.vocab_size={run.vocab_size}", *run.size)
        length = (f"pretrain.num_steps={run.num_steps}", f"seed={run.seed}")
        own = (f"variant={run.arm.variant}", *run.arm.overrides)
        run_stage("pretrain", *COMMON, *place, *size, *length, *own)
    return folder


def run_stage(name: str, *overrides: str) -> None:
    """Run a stage of the pipeline by hand.

    Raises:
        RuntimeError: it fails; the text says with what command and why.
    """
    command = [sys.executable, str(ROOT / "pipelines" / f"{name}.py"), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")
