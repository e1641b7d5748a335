"""The engine against full forward passes without a cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trilith.model import ModelConfig, build_model
from trilith.packed import Attachments, PackConfig, TokenizerParts, write_packed
from trilith.quant import QuantConfig
from trilith.runtime import Engine, GenerateConfig, SamplingConfig, stream_text

GREEDY = SamplingConfig(0.0, None, None, 1.0, 0)


@pytest.fixture(scope="module")
def toy_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    torch.manual_seed(0)
    config = ModelConfig("toy", 37, 24, 2, 6, 2, "relu2", 40, 32, 10000.0, 1e-5, True, True, False)
    # Float activations: the rounding to int8 would turn last bits of cached decoding into steps.
    model = build_model(config, QuantConfig("ternary", "absmean", "tensor", None, None))
    path = tmp_path_factory.mktemp("packed") / "toy.safetensors"
    write_packed(
        model,
        path=path,
        config=PackConfig("smallest", "bf16"),
        attachments=Attachments(TokenizerParts(b"tokenizer", {"eos": 2}), {}),
        proof_tokens=torch.arange(12).view(2, 6),
    )
    return Engine.load(path)


def _generate(max_new_tokens: int = 10, **changes: Any) -> GenerateConfig:
    return replace(GenerateConfig(max_new_tokens, (), GREEDY), **changes)


def _greedy_by_full_passes(engine: Engine, prompt: list[int], num_new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_new):
        with torch.no_grad():
            logits = engine.model(torch.tensor([tokens]))[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def test_prefill_and_decode_are_the_full_forward(toy_engine: Engine) -> None:
    tokens = torch.randint(0, 37, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = toy_engine.model(tokens)
    cache = toy_engine.new_cache(batch_size=3, capacity=12)
    # float32 sums in another order.
    close = {"rtol": 1e-4, "atol": 1e-5}
    found = toy_engine.prefill(tokens[:, :7], cache=cache)
    torch.testing.assert_close(found, full[:, 6], **close)
    for position in range(7, 12):
        found = toy_engine.decode_one_token(tokens[:, position], cache=cache)
        torch.testing.assert_close(found, full[:, position], **close)


def test_greedy_generation_is_that_of_full_passes(toy_engine: Engine) -> None:
    prompt = [1, 5, 9]
    found = list(toy_engine.generate(prompt, config=_generate(20)))
    assert found == _greedy_by_full_passes(toy_engine, prompt, 20)


def test_tokens_are_handed_out_one_by_one(toy_engine: Engine) -> None:
    stream = toy_engine.generate([1, 5, 9], config=_generate(20))
    first = [next(stream) for _ in range(3)]
    assert first == list(toy_engine.generate([1, 5, 9], config=_generate(3)))


def test_two_streams_do_not_disturb_each_other(toy_engine: Engine) -> None:
    alone = [list(toy_engine.generate(p, config=_generate())) for p in ([1, 2], [3, 4, 5])]
    streams = [toy_engine.generate(p, config=_generate()) for p in ([1, 2], [3, 4, 5])]
    together = list(zip(*streams, strict=True))
    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone


def test_a_stop_id_ends_the_continuation_and_is_not_part_of_it(toy_engine: Engine) -> None:
    free = list(toy_engine.generate([1, 5, 9], config=_generate(20)))
    stop = free[4]
    stopped = list(toy_engine.generate([1, 5, 9], config=_generate(20, stop_ids=(stop,))))
    assert stopped == free[: free.index(stop)]


def test_a_seed_decides_the_draws(toy_engine: Engine) -> None:
    def tokens(seed: int) -> list[int]:
        sampling = SamplingConfig(2.0, None, 0.95, 1.1, seed)
        return list(toy_engine.generate([1], config=_generate(sampling=sampling)))

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


def test_the_penalty_sees_prompt_and_continuation(toy_engine: Engine) -> None:
    sampling = replace(GREEDY, repetition_penalty=1e6)
    prompt = [1, 5, 9]
    found = list(toy_engine.generate(prompt, config=_generate(20, sampling=sampling)))
    assert len(set(found + prompt)) == 23


def test_a_continuation_may_fill_the_context(toy_engine: Engine) -> None:
    assert len(list(toy_engine.generate([1] * 30, config=_generate(3)))) == 3


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "text"),
    [
        ([1] * 30, 4, "33 tokens do not fit the context of 32 tokens of model toy"),
        ([1] * 40, 1, "40 tokens do not fit"),
        ([], 3, "prompt is empty"),
        ([1, 37], 3, r"ids 1\.\.37 and model toy knows 0\.\.36"),
        ([-1], 3, r"ids -1\.\."),
    ],
)
def test_what_does_not_fit_is_an_error_at_the_call(
    toy_engine: Engine, prompt: list[int], max_new_tokens: int, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        toy_engine.generate(prompt, config=_generate(max_new_tokens))


def test_no_new_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        _generate(0)


def test_the_engine_carries_the_tokenizer(toy_engine: Engine) -> None:
    assert toy_engine.file.tokenizer_bytes == b"tokenizer"
    assert toy_engine.file.manifest.special_ids == {"eos": 2}


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pack stage"):
        Engine.load(tmp_path / "none.safetensors")


class LetterTokenizer:
    """One id a letter, behind a begin mark: a tokenizer as small as the toy model."""

    bos_id = 2
    vocab_size = 37

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 3 for letter in text]


class LetterDecoder:
    """Holds each letter back until the next, so that flushing matters."""

    def __init__(self) -> None:
        self.held = ""

    def push(self, token: int) -> str:
        text, self.held = self.held, f"{token} "
        return text

    def flush(self) -> str:
        return self.held


def test_text_follows_a_begin_mark_and_is_decoded_to_the_last_token(toy_engine: Engine) -> None:
    pieces = stream_text(
        toy_engine,
        prompt="abc",
        tokenizer=LetterTokenizer(),
        decoder=LetterDecoder(),
        config=_generate(),
    )
    expected = toy_engine.generate([2, 3, 4, 5], config=_generate())
    assert "".join(pieces).split() == [str(token) for token in expected]


def test_a_tokenizer_of_another_size_is_refused(toy_engine: Engine) -> None:
    tokenizer = LetterTokenizer()
    tokenizer.vocab_size = 38
    with pytest.raises(ValueError, match="tokenizer has 38 ids and model toy 37"):
        stream_text(
            toy_engine,
            prompt="",
            tokenizer=tokenizer,
            decoder=LetterDecoder(),
            config=_generate(),
        )
