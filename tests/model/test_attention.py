"""Attention against loops over tokens and heads, rotary positions against complex numbers."""

import cmath
import math

import pytest
import torch
from torch import Tensor

from trilith.model.attention import causal_attention
from trilith.model.rope import rope_tables, rotate


def _rotated_by_hand(x_C: list[float], position: int, theta: float) -> list[float]:
    half = len(x_C) // 2
    turned = [
        complex(x_C[i], x_C[i + half]) * cmath.exp(1j * position * theta ** (-i / half))
        for i in range(half)
    ]
    return [z.real for z in turned] + [z.imag for z in turned]


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_width", [2, 6, 8])
def test_rotary_positions_turn_complex_numbers(head_width: int, theta: float) -> None:
    x = torch.randn(2, 3, 5, head_width, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 1, 2, 40, 41])
    y = rotate(x, *rope_tables(positions, head_width, theta))
    for batch in range(2):
        for head in range(3):
            for index, position in enumerate(positions.tolist()):
                expected = _rotated_by_hand(x[batch, head, index].tolist(), position, theta)
                # float32 angles up to 41: an error of 41 * 2^-24 at most, times |x|.
                torch.testing.assert_close(
                    y[batch, head, index], torch.tensor(expected), rtol=1e-5, atol=2e-5
                )


def test_scores_of_rotated_vectors_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(q_position: int, k_position: int) -> float:
        tables = [rope_tables(torch.tensor([p]), 8, 1e4) for p in (q_position, k_position)]
        return float((rotate(q, *tables[0]) * rotate(k, *tables[1])).sum())

    assert score(13, 6) == pytest.approx(score(107, 100), abs=1e-4)
    assert score(13, 6) != pytest.approx(score(13, 7), abs=1e-2)


def _attention_by_loops(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
    """Token t of T sits at position S - T + t and sees all positions up to its own."""
    out = torch.full(q_BHTC.shape, math.nan)
    num_batch, num_heads, num_new, width = q_BHTC.shape
    num_kv_heads, num_seen = k_BKSC.shape[1:3]
    for b in range(num_batch):
        for h in range(num_heads):
            kv = h // (num_heads // num_kv_heads)
            for t in range(num_new):
                end = num_seen - num_new + t + 1
                dots = [
                    float(q_BHTC[b, h, t] @ k_BKSC[b, kv, s]) / math.sqrt(width) for s in range(end)
                ]
                weights = [math.exp(dot - max(dots)) for dot in dots]
                mixed = sum(w * v_BKSC[b, kv, s] for s, w in enumerate(weights))
                out[b, h, t] = mixed / sum(weights)
    return out


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("num_tokens", [1, 7])
def test_grouped_causal_attention_is_that_of_loops(
    num_heads: int, num_kv_heads: int, num_tokens: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, num_heads, num_tokens, 6, generator=generator)
    k, v = torch.randn(2, 2, num_kv_heads, num_tokens, 6, generator=generator)
    expected = _attention_by_loops(q, k, v)
    torch.testing.assert_close(causal_attention(q, k, v), expected, rtol=1e-5, atol=1e-5)
