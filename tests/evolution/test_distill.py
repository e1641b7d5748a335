"""Forward KL against its definition in float64."""

import torch

from trilith.evolution import forward_kl


def test_it_is_the_mean_divergence_of_the_student_from_the_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 11), torch.randn(2, 3, 11)
    p = teacher.double().softmax(-1)
    q = student.double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(forward_kl(student, teacher).double(), expected)


def test_it_is_zero_for_equal_predictions_and_pulls_the_student_alone() -> None:
    student = torch.randn(4, 7, requires_grad=True)
    assert float(forward_kl(student, student.detach())) < 1e-6
    forward_kl(student, torch.randn(4, 7)).backward()
    assert student.grad is not None and bool(student.grad.abs().sum() > 0)
