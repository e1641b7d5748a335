"""Weights on large pages: equal to what was copied, aligned, and apart from each other."""

import mmap

import pytest
import torch

from trilith.kernels.pages import on_large_pages


def test_copies_are_equal_aligned_and_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    originals = [torch.randn(rows, 777, generator=generator) for rows in range(1, 400, 7)]
    copies = [on_large_pages(tensor) for tensor in originals]
    for tensor in copies[::2]:
        tensor.zero_()
    assert all(torch.equal(*pair) for pair in list(zip(copies, originals, strict=True))[1::2])
    if hasattr(mmap, "MADV_HUGEPAGE"):
        assert all(tensor.data_ptr() % 64 == 0 for tensor in copies)


def test_what_was_copied_may_go_and_a_tensor_may_be_larger_than_a_chunk() -> None:
    large = torch.arange(50_000_000, dtype=torch.uint8)
    copy = on_large_pages(large)
    small = on_large_pages(torch.ones(3, dtype=torch.int8))
    large.fill_(7)
    assert torch.equal(copy, torch.arange(50_000_000, dtype=torch.uint8))
    assert small.dtype == torch.int8 and small.tolist() == [1, 1, 1]
    assert copy.untyped_storage().nbytes() == large.nbytes


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_empty_and_single_values_keep_their_shape(shape: tuple[int, ...]) -> None:
    assert on_large_pages(torch.zeros(shape)).shape == shape
