"""What a step of the evolution sees, and what it minimizes.

Axes: B sequences, T tokens, V vocabulary.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from trilith.evolution import TopPredictions, forward_kl, top_kl, top_predictions
from trilith.model import Transformer
from trilith.training.batches import IGNORED, Batch, BatchSource
from trilith.training.module import Loss, Objective, cross_entropy, z_penalty
from trilith.training.teacher import TeacherCache


class EvolveBatch(NamedTuple):
    """Plain text and answers of one step; they differ in length, so they stay apart.

    `answers` is None while a phase sees text alone, `taught` where the teacher is asked itself.
    `pull` is the share of the teacher's weight that holds, in [0, 1].
    """

    plain: Batch
    answers: Batch | None
    taught: TopPredictions | None
    pull: float


class EvolveBatches:
    """Gives all parts of the batch at a position.

    Args:
        plain: windows of text.
        answers: rows of instructions.
        teacher: predictions kept for the windows, if any.
        first: position of the first batch, counted over all phases.
        num_text: so many batches have text alone.
        pull: of a position counted over all phases.
    """

    def __init__(
        self,
        plain: BatchSource,
        answers: BatchSource,
        *,
        teacher: TeacherCache | None,
        first: int,
        num_text: int,
        pull: Callable[[int], float],
    ) -> None:
        self.plain = plain
        self.answers = answers
        self.teacher = teacher
        self.first = first
        self.num_text = num_text
        self.pull = pull

    def batch(self, position: int) -> EvolveBatch:
        """Return the batch at `position`, counted from `first` over all epochs."""
        place = self.first + position
        answers = None if position < self.num_text else self.answers.batch(place)
        pull = self.pull(place)
        taught = self.teacher.predictions(place) if self.teacher is not None and pull else None
        return EvolveBatch(self.plain.batch(place), answers, taught, pull)


def evolve_objective(
    teacher: Transformer, *, kl_weight: float, top_k: int | None, z_loss: float
) -> Objective:
    """Cross-entropy of plain text and answers, plus what pulls towards the teacher.

    That is its divergence, times `kl_weight`, times the batch's `pull`.

    The teacher is asked for batches without kept predictions alone; of what it says the `top_k`
    likeliest tokens count on their own, or all if that is None.
    """
    on_device = _on_device(teacher)

    def divergence(logits_BTV: Tensor, batch: EvolveBatch) -> Tensor:
        if batch.taught is not None:
            return top_kl(logits_BTV, batch.taught)
        with torch.no_grad():
            wanted = on_device(logits_BTV.device)(batch.plain.inputs_BT)
        if top_k is None:
            return forward_kl(logits_BTV, wanted)
        return top_kl(logits_BTV, top_predictions(wanted, top_k=top_k))

    def objective(model: Transformer, batch: EvolveBatch) -> Loss:
        logits = model(batch.plain.inputs_BT)
        plain = cross_entropy(logits, batch.plain)
        total = plain
        if batch.answers is not None:
            answer_logits = model(batch.answers.inputs_BT, segments_BT=batch.answers.segments_BT)
            answers = cross_entropy(answer_logits, batch.answers)
            num_plain, num_answers = num_targets(batch.plain), num_targets(batch.answers)
            total = (plain * num_plain + answers * num_answers) / (num_plain + num_answers)
        if z_loss:
            total = total + z_loss * z_penalty(logits, batch.plain)
        weight = kl_weight * batch.pull
        if not weight:
            return Loss(total, plain.detach())
        kl_nats = divergence(logits, batch)
        return Loss(total + weight * kl_nats, plain.detach(), kl_nats.detach())

    return objective


def num_targets(batch: Batch) -> Tensor:
    """Number of targets that count in the loss."""
    return (batch.targets_BT != IGNORED).sum()


def _on_device(model: Transformer) -> Callable[[torch.device], Transformer]:
    """Hand out the model on a device; what has to move is copied: the original starts phases."""

    @cache
    def placed(device: torch.device) -> Transformer:
        return model if device.type == "cpu" else copy.deepcopy(model).to(device)

    return placed
