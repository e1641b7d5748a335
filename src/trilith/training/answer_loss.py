"""Loss on answers that are trained on and on others: learning, or learning by heart."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from trilith.evolution import AnswerRows
from trilith.model import Transformer
from trilith.training.batches import shift
from trilith.training.module import cross_entropy

log = logging.getLogger(__name__)

# Trinity's models knew their few instructions by heart below this.
OVERFITTED_NATS = 0.5
# Rows that tell the loss, and how many of them at once.
_NUM_ROWS = 64
_BATCH_SIZE = 16


class AnswerLosses(NamedTuple):
    """Mean loss in nats over answers of the training and of the validation split; None for none."""

    seen_nats: float
    held_out_nats: float | None

    def metrics(self) -> dict[str, float]:
        """The losses that there are, under their names."""
        found = {"answers/train_loss_nats": self.seen_nats}
        if self.held_out_nats is not None:
            found["answers/validation_loss_nats"] = self.held_out_nats
        return found


def held_out_loss(model: Transformer, held_out: AnswerRows) -> float | None:
    """Mean loss in nats over the first rows of held-out answers; None where there are none."""
    if not len(held_out.tokens):
        return None
    was_training = model.training
    model.eval()
    loss = _mean_loss(model, held_out)
    model.train(was_training)
    return loss


def answer_losses(model: Transformer, *, seen: AnswerRows, held_out: AnswerRows) -> AnswerLosses:
    """Measure both losses on the first rows of each; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    losses = AnswerLosses(_mean_loss(model, seen), held_out_loss(model, held_out))
    model.train(was_training)
    return losses


def warn_of_overfitting(
    name: str, before: AnswerLosses, after: AnswerLosses, *, alert: Callable[..., Any]
) -> None:
    """Say so if a phase has learned its answers by heart, at the cost of those it has not seen."""
    if before.held_out_nats is None or after.held_out_nats is None:
        return
    if after.seen_nats < OVERFITTED_NATS and after.held_out_nats > before.held_out_nats:
        text = (
            f"the loss on trained answers is {after.seen_nats:.2f} nats, on held-out ones it rose "
            f"from {before.held_out_nats:.2f} to {after.held_out_nats:.2f}: the answers are "
            "learned by heart; use more instructions or fewer steps, or train.result=best"
        )
        log.warning("%s: overfitting: %s", name, text)
        alert(title=f"{name}: overfitting", text=text)


@torch.no_grad()
def _mean_loss(model: Transformer, rows: AnswerRows) -> float:
    device = next(model.parameters()).device
    total, num_counted = 0.0, 0
    for start in range(0, min(_NUM_ROWS, len(rows.tokens)), _BATCH_SIZE):
        own = slice(start, min(start + _BATCH_SIZE, _NUM_ROWS))
        segments = None if rows.segments is None else rows.segments[own]
        batch = shift(rows.tokens[own], rows.answer_mask[own], segments).to(device)
        counted = int(rows.answer_mask[own].sum())
        logits = model(batch.inputs_BT, segments_BT=batch.segments_BT)
        total += counted * float(cross_entropy(logits, batch))
        num_counted += counted
    return total / num_counted
