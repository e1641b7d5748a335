"""Distillation: how far a student's predictions are from its dense teacher's."""

from torch import Tensor
from torch.nn import functional as F


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
