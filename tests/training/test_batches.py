"""Batches: the shift, the epochs, the position."""

from itertools import islice

import numpy as np
import pytest
import torch

from trilith.training.batches import (
    IGNORED,
    HeldOutLoader,
    MaskedRows,
    PositionLoader,
    TokenWindows,
    shift,
)


def windows(num_tokens: int = 101, *, seed: int = 0) -> TokenWindows:
    return TokenWindows(np.arange(num_tokens), context=10, batch_size=2, seed=seed)


def test_each_target_is_the_token_after_its_input() -> None:
    batch = windows().batch(3)
    assert batch.inputs_BT.shape == (2, 10)
    assert torch.equal(batch.targets_BT, batch.inputs_BT + 1)


def test_an_epoch_shows_every_window_once_and_the_next_in_another_order() -> None:
    source = windows()
    epochs = [
        torch.cat([source.batch(position).inputs_BT[:, 0] for position in range(start, start + 5)])
        for start in (0, 5)
    ]
    for firsts in epochs:
        assert sorted(firsts.tolist()) == list(range(0, 100, 10))
    assert not torch.equal(*epochs)


def test_a_batch_depends_on_seed_and_position_alone() -> None:
    again = windows()
    again.batch(9)
    assert torch.equal(windows().batch(2).inputs_BT, again.batch(2).inputs_BT)
    assert not torch.equal(windows().batch(2).inputs_BT, windows(seed=1).batch(2).inputs_BT)


def test_too_few_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match="hold 1 windows of context=10"):
        windows(12)


def test_only_masked_tokens_are_targets() -> None:
    rows = np.array([[5, 6, 7, 8]])
    batch = shift(rows, np.array([[True, False, True, False]]))
    assert batch.inputs_BT.tolist() == [[5, 6, 7]]
    assert batch.targets_BT.tolist() == [[IGNORED, 7, IGNORED]]


def test_masked_rows_come_once_an_epoch_with_their_own_mask() -> None:
    rows = np.arange(24).reshape(6, 4)
    counted = np.eye(6, 4, dtype=bool)
    source = MaskedRows(rows, counted, batch_size=2, seed=3)
    batches = [source.batch(position) for position in range(3)]
    firsts = torch.cat([batch.inputs_BT[:, 0] for batch in batches])
    assert sorted(firsts.tolist()) == rows[:, 0].tolist()
    for batch in batches:
        for inputs, targets in zip(batch.inputs_BT, batch.targets_BT, strict=True):
            expected = shift(rows, counted).targets_BT[int(inputs[0]) // 4]
            assert torch.equal(targets, expected)


def test_segments_go_with_the_inputs_of_their_row() -> None:
    rows, segments = np.arange(24).reshape(6, 4), np.arange(24).reshape(6, 4) % 7
    counted = np.ones((6, 4), dtype=bool)
    source = MaskedRows(rows, counted, batch_size=3, seed=3, segments=segments)
    for position in range(2):
        batch = source.batch(position)
        assert batch.segments_BT is not None
        assert torch.equal(batch.segments_BT, batch.inputs_BT % 7)


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="no instruction"):
        MaskedRows(np.empty((0, 4)), np.empty((0, 4), dtype=bool), batch_size=2, seed=0)


def test_a_loader_goes_on_after_its_saved_position() -> None:
    loader = PositionLoader(windows(), num_batches=7)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    later = PositionLoader(windows(), num_batches=7)
    later.load_state_dict(loader.state_dict())
    rest = list(later)
    assert len(rest) == 4
    assert torch.equal(rest[0].inputs_BT, next(batches).inputs_BT)
    assert len(list(later)) == 7


def test_held_out_batches_are_the_same_each_time_whoever_stops_early() -> None:
    loader = HeldOutLoader(windows(), num_batches=3)
    first = list(islice(loader, 3))
    again = list(islice(loader, 3))
    assert len(first) == len(again) == len(loader) == 3
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.inputs_BT, other.inputs_BT)


def test_processes_share_the_batches_of_a_run_and_their_number_may_change() -> None:
    class Positions:
        def batch(self, position: int) -> int:
            return position

    def taking(num_ranks: int, num_batches: int) -> list[PositionLoader]:
        return [
            PositionLoader(Positions(), num_batches=num_batches, rank=rank, num_ranks=num_ranks)
            for rank in range(num_ranks)
        ]

    first, second = taking(2, 6)
    seen = [next(iter(loader)) for _ in range(2) for loader in (first, second)]
    assert seen == [0, 1, 2, 3]
    alone = taking(1, 12)[0]
    alone.load_state_dict(first.state_dict())
    assert list(alone) == list(range(4, 12))
    alone.position = 4
    for rank, loader in enumerate(taking(4, 3)):
        loader.load_state_dict(alone.state_dict())
        assert list(loader) == [4 + rank, 8 + rank]
