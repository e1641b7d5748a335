"""Distillation: how far a student's predictions are from its dense teacher's.

Axes: B sequences, T tokens, V vocabulary, K likeliest tokens.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

# Of what is left beside the kept tokens, at least this much: its logarithm stays finite.
_MIN_REST = 1e-6


class TopPredictions(NamedTuple):
    """The likeliest next tokens and their log-probabilities in nats; the rest is not kept."""

    ids_BTK: Tensor  # int64
    log_probs_BTK: Tensor  # float32


def top_predictions(logits_BTV: Tensor, *, top_k: int) -> TopPredictions:
    """Keep the `top_k` likeliest tokens of each prediction, likeliest first."""
    log_probs = F.log_softmax(logits_BTV.float(), dim=-1)
    kept = log_probs.topk(top_k, dim=-1)
    return TopPredictions(kept.indices, kept.values)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher || student) in nats (Hinton et al., arXiv 1503.02531).

    Args:
        student_logits: [..., V].
        teacher_logits: [..., V].

    Returns:
        A scalar, not negative.
    """
    student = F.log_softmax(student_logits.float().flatten(0, -2), dim=-1)
    teacher = F.log_softmax(teacher_logits.float().flatten(0, -2), dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def top_kl(student_logits: Tensor, teacher: TopPredictions) -> Tensor:
    """Mean over tokens of KL(teacher || student) in nats, with all that is not kept as one token.

    Merging tokens never adds to a divergence, so that this is at most `forward_kl`.

    Args:
        student_logits: [B, T, V].
        teacher: the teacher's likeliest tokens at the same places.

    Returns:
        A scalar, not negative up to rounding.
    """
    student = F.log_softmax(student_logits.float(), dim=-1).gather(-1, teacher.ids_BTK)
    kept = teacher.log_probs_BTK.float()
    terms = (kept.exp() * (kept - student)).sum(dim=-1)
    teacher_rest, student_rest = _rest(kept), _rest(student)
    terms = terms + teacher_rest * (teacher_rest.log() - student_rest.log())
    return terms.mean()


def _rest(log_probs_BTK: Tensor) -> Tensor:
    """Probability of all tokens that are not among these: [B, T]."""
    return (1 - log_probs_BTK.exp().sum(dim=-1)).clamp(min=_MIN_REST)
