"""Evolution: a dense model down the grids, beside a dense control on the same tokens.

Each phase starts from the latent weights of the one before. The control does the same phases
without a grid, so that more training is never taken for recovery.
"""

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from trilith.evolution import AnswerRows
from trilith.files import is_first_process, read_json, remove, replacing
from trilith.model import load_checkpoint
from trilith.tokens import open_split
from trilith.training.batches import TokenWindows
from trilith.training.devices import wait_for_all
from trilith.training.evolve_config import EvolveConfig
from trilith.training.evolve_phase import Job, Setting, run_phase
from trilith.training.fit import RunPlace, TrainConfig
from trilith.training.memory import state_bytes
from trilith.training.room import Need, require_room, resume_bytes
from trilith.training.teaching import Schooling, Teacher, check_teacher, open_predictions

# Prefixes of the models that come out, one of each for every phase.
EVOLVED = "evolved"
CONTROL = "dense_continued"


class EvolveInputs(NamedTuple):
    """What the evolution starts from.

    `taught_dir` holds what the stage `teach` wrote, and is not read if nothing is to be kept.
    `held_out` are answers of the validation split, maybe none; `licence` is that of foreign
    instructions.
    """

    teacher: Teacher
    tokens_dir: Path
    taught_dir: Path
    answers: AnswerRows
    held_out: AnswerRows
    licence: str | None = None


def evolve(
    inputs: EvolveInputs,
    *,
    config: EvolveConfig,
    train: TrainConfig,
    out_dir: Path,
    place: RunPlace,
) -> dict[str, Any]:
    """Run the arms through all phases; write one checkpoint folder a model into `out_dir`.

    Finished phases of an interrupted run stay beside the resume state and are not repeated.

    Returns:
        Flat metrics, each behind the name of its model.

    Raises:
        ValueError: the shards or the kept predictions are not those of the teacher, or windows or
            answers are too long for it.
    """
    schooling = Schooling(
        config, train, inputs.tokens_dir, place.trainer.world_size, seed=place.seed
    )
    check_teacher(inputs.teacher, schooling)
    setting = _setting(inputs, schooling, place)
    arms = (EVOLVED, CONTROL) if config.control else (EVOLVED,)
    if is_first_process():
        require_room(_needs(setting, arms, out_dir))
    metrics = _answer_counts(inputs.answers)
    finished = place.resume_dir / "finished"
    for arm in arms:
        checkpoint = inputs.teacher.checkpoint
        for phase, job in _jobs(config, arm).items():
            if arm == CONTROL:
                ended = metrics[f"{EVOLVED}_{phase}/train/last_step"]
                job = job._replace(num_steps=ended)
            folder = finished / job.name
            if not folder.exists():
                run_phase(job, checkpoint, setting, folder)
            checkpoint = load_checkpoint(folder, made_by="evolve")
            phase_metrics = read_json(folder / "curves" / "metrics.json", made_by="evolve")
            metrics |= {f"{job.name}/{key}": value for key, value in phase_metrics.items()}
    # Until here the others may still read a finished phase.
    wait_for_all()
    if is_first_process():
        _hand_over(finished, out_dir, place.metrics_dir / "curves")
        remove(place.resume_dir)
    return metrics


def _answer_counts(answers: AnswerRows) -> dict[str, Any]:
    return {
        "answers/train": answers.num_examples,
        "answers/num_rows": len(answers.tokens),
        "answers/num_cut": answers.num_cut,
        "answers/num_dropped": answers.num_dropped,
    }


def _setting(inputs: EvolveInputs, schooling: Schooling, place: RunPlace) -> Setting:
    return Setting(
        schooling.config,
        schooling.train,
        place,
        teacher=inputs.teacher.checkpoint.model.eval(),
        tokens_dir=inputs.tokens_dir,
        windows=schooling.windows(),
        taught=open_predictions(inputs.teacher, schooling, inputs.taught_dir),
        answers=inputs.answers,
        held_out=inputs.held_out,
        licence=inputs.licence,
        calibration_NT=_calibration(schooling),
    )


def _needs(setting: Setting, arms: tuple[str, ...], out_dir: Path) -> list[Need]:
    """What the run will write: the state of a phase, all models beside it, and again at the end."""
    config, folder = setting.config, setting.place.resume_dir
    model = setting.teacher.config
    resume, results = 0, 0
    for job in [job for arm in arms for job in _jobs(config, arm).values()]:
        state = state_bytes(model, quant=job.quant, optimizer=config.recipe.optimizer)
        phase = resume_bytes(
            state, folder / job.name, num_steps=job.num_steps, config=setting.train
        )
        resume = max(resume, phase)
        results += state.weights
    finished = sum(path.stat().st_size for path in folder.glob("finished/*/model.safetensors"))
    return [Need(folder, resume + max(0, results - finished)), Need(out_dir, results)]


def _jobs(config: EvolveConfig, arm: str) -> dict[str, Job]:
    """The phases of an arm by their names, as planned."""
    jobs = {}
    first_step = 0
    for phase_name, phase in config.phases.items():
        quant = phase.quant if arm == EVOLVED else None
        # Without a control the teacher itself is what a model is compared with.
        reference = f"{CONTROL}_{phase_name}" if config.control else "dense"
        name = f"{arm}_{phase_name}"
        num_text = math.floor(config.text_share * phase.num_steps)
        jobs[phase_name] = Job(name, reference, quant, phase.num_steps, num_text, first_step)
        first_step += phase.num_steps
    return jobs


def _calibration(schooling: Schooling) -> Tensor:
    """Windows of the training split, drawn from the seed, that fits are made and measured on."""
    windows = TokenWindows(
        open_split(schooling.tokens_dir, "train").tokens,
        context=schooling.train.context,
        batch_size=schooling.config.calibration_windows,
        seed=schooling.seed,
    )
    return windows.batch(0).inputs_BT


def _hand_over(finished: Path, out_dir: Path, curves_dir: Path) -> None:
    """Put the curves of all phases with the metrics and the checkpoints into the output.

    Copied, not moved: whoever is stopped here finds all phases finished the next time.
    """
    with replacing(curves_dir) as partial:
        for folder in sorted(finished.iterdir()):
            shutil.copytree(folder / "curves", partial / folder.name)
    with replacing(out_dir) as partial:
        shutil.copytree(finished, partial, ignore=shutil.ignore_patterns("curves"))
