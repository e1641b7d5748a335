"""Forward KL against its definition in float64."""

import pytest
import torch

from trilith.evolution import forward_kl, top_kl, top_predictions


def test_it_is_the_mean_divergence_of_the_student_from_the_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 11), torch.randn(2, 3, 11)
    p = teacher.double().softmax(-1)
    q = student.double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(forward_kl(student, teacher).double(), expected)


def test_it_is_zero_for_equal_predictions_and_pulls_the_student_alone() -> None:
    student = torch.randn(4, 7, requires_grad=True)
    assert float(forward_kl(student, student).detach()) < 1e-6
    forward_kl(student, torch.randn(4, 7)).backward()
    assert student.grad is not None and bool(student.grad.abs().sum() > 0)


@pytest.mark.parametrize("top_k", [1, 4, 10])
def test_what_is_not_kept_counts_as_one_token(top_k: int) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 11), 3 * torch.randn(2, 3, 11)
    kept = top_predictions(teacher, top_k=top_k)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    ids = p.argsort(-1, descending=True)
    p, q = p.gather(-1, ids), q.gather(-1, ids)
    p, q = (torch.cat([x[..., :top_k], x[..., top_k:].sum(-1, keepdim=True)], -1) for x in (p, q))
    expected = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(top_kl(student, kept).double(), expected, rtol=1e-5, atol=1e-6)
    assert top_kl(student, kept) <= forward_kl(student, teacher) + 1e-6
    # With one token left out nothing is merged.
    if top_k == 10:
        torch.testing.assert_close(top_kl(student, kept), forward_kl(student, teacher))


def test_predictions_that_leave_nothing_out_stay_finite() -> None:
    certain = torch.tensor([[[60.0, 0.0, 0.0]]])
    student = certain.clone().requires_grad_()
    loss = top_kl(student, top_predictions(certain, top_k=1))
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()
