"""Streamed layers: the same logits, two blocks at a time; what is too large is said at once."""

from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from tests.conftest import TOY
from tests.runtime.packed_toys import pack_shape
from torch import Tensor

from trilith.model import Block, CacheConfig
from trilith.packed import build_packed_block
from trilith.quant import QuantConfig
from trilith.runtime import Engine, layer_stream, room

TERNARY = QuantConfig("ternary", "absmean", "group", 8, 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return pack_shape(tmp_path, replace(TOY, num_layers=5, tied_head=False), TERNARY)


def test_logits_are_those_of_the_modules_bit_for_bit(path: Path) -> None:
    held, streamed = Engine.load(path), Engine.load(path, layers="streamed")
    held.decoder = None
    tokens_BT = torch.randint(0, 37, (2, 12), generator=torch.Generator().manual_seed(0))
    caches = [engine.new_cache(batch_size=2, capacity=12) for engine in (held, streamed)]
    for part in (tokens_BT[:, :9], *tokens_BT[:, 9:].split(1, dim=1)):
        expected, found = (
            engine.prefill(part, cache=cache)
            for engine, cache in zip((held, streamed), caches, strict=True)
        )
        assert torch.equal(found, expected)


def test_two_blocks_are_there_at_any_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: WeakSet[Block] = WeakSet()
    most = 0

    def build(*args: object) -> Block:
        nonlocal most
        block = build_packed_block(*args)  # type: ignore[arg-type]
        alive.add(block)
        most = max(most, len(alive))
        return block

    monkeypatch.setattr(layer_stream, "build_packed_block", build)
    engine = Engine.load(path, layers="streamed")
    cache = engine.new_cache(batch_size=1, capacity=9)
    engine.prefill(torch.tensor([[1, 2, 3]]), cache=cache)
    for token in (4, 5, 6):
        engine.decode_one_token(torch.tensor([token]), cache=cache)
    assert engine.stream is not None
    engine.stream.close()
    times = engine.stream.times
    assert most == 2
    assert min(times.read_s, times.compute_s, times.wait_s) > 0 and 0 <= times.overlap <= 1


def test_a_pass_that_breaks_off_leaves_nothing_to_the_next(path: Path) -> None:
    engine = Engine.load(path, layers="streamed")
    assert engine.stream is not None
    expected = _prefill(Engine.load(path, layers="streamed"))
    for broken in range(5):
        with pytest.raises(KeyboardInterrupt) as kept:
            _stop_at(engine.stream, broken)
        # The traceback still holds the pass that broke off, as a server's log may.
        assert torch.equal(_prefill(engine), expected)
        assert torch.equal(_prefill(engine), expected)
        del kept


def test_a_read_that_failed_is_tried_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(path, layers="streamed")
    expected = _prefill(engine)
    for failing in range(1, 6):
        # Its thread may still read ahead, and would be counted.
        assert engine.stream is not None
        engine.stream.close()
        num_reads = 0

        def build(*args: object, failing: int = failing) -> Block:
            nonlocal num_reads
            num_reads += 1
            if num_reads == failing:
                raise OSError("the disk is gone")
            return build_packed_block(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(layer_stream, "build_packed_block", build)
        engine = Engine.load(path, layers="streamed")
        with pytest.raises(OSError, match="the disk is gone"):
            _prefill(engine)
        assert torch.equal(_prefill(engine), expected)


def test_what_is_too_large_is_said_before_loading(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, streamed = (
        room.needed_bytes(
            room.setup_of(room.open_unchecked(path), cache=CacheConfig(), layers=layers)
        )
        for layers in ("held", "streamed")
    )
    assert streamed < held
    # Nothing of the tensors may be needed for it.
    monkeypatch.setattr("trilith.runtime.engine.read_packed", None)
    monkeypatch.setattr(room, "host_memory_bytes", lambda: held - 1)
    with pytest.raises(ValueError, match=r"toy\.safetensors needs .* GB.*--stream-layers"):
        Engine.load(path)
    monkeypatch.setattr(room, "host_memory_bytes", lambda: streamed - 1)
    with pytest.raises(ValueError, match="take a smaller model"):
        Engine.load(path, layers="streamed")


def _prefill(engine: Engine) -> Tensor:
    cache = engine.new_cache(batch_size=1, capacity=3)
    return engine.prefill(torch.tensor([[1, 2, 3]]), cache=cache)


def _stop_at(stream: layer_stream.LayerStream, number: int) -> None:
    for at, _ in enumerate(stream):
        if at == number:
            raise KeyboardInterrupt
