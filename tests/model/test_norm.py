"""The norm against its formula in float64 and autograd's gradient of it."""

import pytest
import torch

from trilith.model import RMSNorm


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 3, 8), (2, 6, 3, 4)], ids=str)
def test_value_and_gradients_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(shape[-1], 1e-5)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(shape)
    oracle_x = x.detach().double().requires_grad_()
    weight = norm.weight.detach().double().requires_grad_()
    rms = (oracle_x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    expected = oracle_x / rms * weight
    (expected * upstream).sum().backward()
    y = norm(x)
    (y * upstream).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(x.grad, oracle_x.grad, **close)
    torch.testing.assert_close(norm.weight.grad, weight.grad, **close)


def test_a_row_of_zeros_stays_zero_with_a_finite_gradient() -> None:
    norm = RMSNorm(4, 1e-5)
    x = torch.zeros(2, 4, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad.isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    norm = RMSNorm(64, 1e-5)
    x = (torch.randn(3, 64) * 300).half()
    y = norm(x)
    assert y.dtype == torch.float16
    # Squares of 300 overflow float16; the rounding of the result is 2^-11.
    torch.testing.assert_close(y.float(), norm(x.float()), rtol=1e-3, atol=1e-3)
