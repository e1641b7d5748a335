"""Static steps against the ordinary engine; graphs against static steps where there is a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toy_packed import pack_toy
from torch import Tensor

from trilith.model import CacheConfig, StaticCache
from trilith.runtime import Engine, GenerateConfig, SamplingConfig
from trilith.runtime.static_decoder import StaticDecoder

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
NUM_PROMPT, NUM_NEW = 5, 7


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_toy(tmp_path_factory.mktemp("static") / "toy.safetensors", context=64)


@pytest.fixture
def engine(path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("TRILITH_KERNELS", "torch")
    return Engine.load(path)


def _tokens() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 300, (3, NUM_PROMPT + NUM_NEW), generator=generator)


@torch.inference_mode()
def _static_logits(decoder: StaticDecoder, tokens_BT: Tensor, capacity: int) -> Tensor:
    cache = decoder.new_cache(batch_size=len(tokens_BT), capacity=capacity)
    logits = [decoder.prefill(tokens_BT[:, :NUM_PROMPT], cache=cache)]
    for tokens_B in tokens_BT[:, NUM_PROMPT:].unbind(dim=1):
        logits.append(decoder.step(tokens_B, cache=cache))
    assert cache.length == int(cache.position) == tokens_BT.shape[1]
    return torch.stack(logits).cpu()


def _ordinary_logits(engine: Engine, tokens_BT: Tensor) -> Tensor:
    cache = engine.new_cache(batch_size=len(tokens_BT), capacity=tokens_BT.shape[1])
    logits = [engine.prefill(tokens_BT[:, :NUM_PROMPT], cache=cache)]
    for tokens_B in tokens_BT[:, NUM_PROMPT:].unbind(dim=1):
        logits.append(engine.decode_one_token(tokens_B, cache=cache))
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache": CacheConfig(8)}, "cache_bits=8 and window=None do not run on cuda"),
        ({"cache": CacheConfig(32, 40)}, "cache_bits=32 and window=40 do not run on cuda"),
        ({"layers": "streamed"}, "layers are streamed on the CPU, not on cuda"),
    ],
    ids=["bits", "window", "layers"],
)
def test_what_a_gpu_does_not_run_is_said_before_reading(
    path: Path, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trilith.runtime.engine.usable_device", torch.device)
    monkeypatch.setattr("trilith.runtime.engine.read_packed", None)
    with pytest.raises(ValueError, match=message):
        Engine.load(path, device="cuda", **given)


@pytest.mark.parametrize("spare", [0, 9])
def test_static_steps_give_the_logits_of_the_engine(engine: Engine, spare: int) -> None:
    tokens_BT = _tokens()
    decoder = StaticDecoder(engine.model)
    found = _static_logits(decoder, tokens_BT, tokens_BT.shape[1] + spare)
    expected = _ordinary_logits(engine, tokens_BT)
    # Attention adds in another order; a last bit there rarely turns a rounding to int8.
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3)
    assert torch.equal(found.argmax(dim=-1), expected.argmax(dim=-1))


def test_what_lies_behind_the_position_has_no_effect(engine: Engine) -> None:
    decoder, tokens_BT = StaticDecoder(engine.model), _tokens()
    with torch.inference_mode():
        logits = []
        for rubbish in (0.0, 1e4):
            cache = decoder.new_cache(batch_size=3, capacity=20)
            cache.keys.fill_(rubbish)
            cache.values.fill_(rubbish)
            decoder.prefill(tokens_BT[:, :NUM_PROMPT], cache=cache)
            logits.append(decoder.step(tokens_BT[:, NUM_PROMPT], cache=cache))
    assert torch.equal(*logits)


def test_a_full_static_cache_refuses_more_tokens(engine: Engine) -> None:
    decoder = StaticDecoder(engine.model)
    cache = decoder.new_cache(batch_size=3, capacity=NUM_PROMPT)
    with torch.inference_mode():
        decoder.prefill(_tokens()[:, :NUM_PROMPT], cache=cache)
        with pytest.raises(ValueError, match="holds 5 tokens and 6 are asked for"):
            decoder.step(_tokens()[:, 0], cache=cache)


def test_without_a_gpu_its_devices_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"no CUDA device; torch .* finds none"):
        Engine.load(path, device="cuda")
    with pytest.raises(ValueError, match="'gpu' is not known; choose cpu, cuda or cuda:N"):
        Engine.load(path, device="gpu")


@pytest.mark.gpu
@needs_gpu
def test_a_replayed_graph_gives_the_logits_of_single_launches(path: Path) -> None:
    engine = Engine.load(path, device="cuda")
    assert isinstance(engine.new_cache(batch_size=1, capacity=4), StaticCache)
    tokens_BT = _tokens()
    graphs, launches = (StaticDecoder(engine.model, captures=flag) for flag in (True, False))
    for capacity in (tokens_BT.shape[1], 40):
        found = _static_logits(graphs, tokens_BT, capacity)
        assert torch.equal(found, _static_logits(launches, tokens_BT, capacity))


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_reads_and_continues_a_prompt_as_the_cpu_does(engine: Engine, path: Path) -> None:
    on_gpu = Engine.load(path, device="cuda")
    expected = engine.prefill(_tokens(), cache=engine.new_cache(batch_size=3, capacity=12))
    found = on_gpu.prefill(_tokens(), cache=on_gpu.new_cache(batch_size=3, capacity=12))
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-2, atol=2e-3)
    config = GenerateConfig(12, (), SamplingConfig(0.7, None, None, 1.0, 0))
    assert len(list(on_gpu.generate([1, 2, 3], config=config))) == 12
