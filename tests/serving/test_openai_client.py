"""The server as OpenAI's own client sees it."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("openai", reason="needs OpenAI's client, of the extra dev")

import openai
from tests.serving.running import PATIENCE_S, running

from trilith.runtime import Engine
from trilith.tokens import Tokenizer

MESSAGES = [{"role": "user", "content": "def add"}]


@pytest.fixture(scope="module")
def client(engine: Engine, tokenizer: Tokenizer) -> Iterator[Any]:
    with running(engine, tokenizer) as server:
        key = "none"
        with openai.OpenAI(
            base_url=server.url, api_key=key, max_retries=0, timeout=PATIENCE_S
        ) as found:
            yield found


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").object == "model"


def test_a_completion_and_its_stream(client: Any) -> None:
    asked = {"model": "toy", "prompt": "def add", "max_tokens": 10, "temperature": 0}
    whole = client.completions.create(**asked)
    assert whole.usage.completion_tokens == 10
    assert whole.choices[0].finish_reason == "length"
    pieces = [event.choices[0].text for event in client.completions.create(**asked, stream=True)]
    assert "".join(pieces) == whole.choices[0].text


def test_a_chat_and_its_stream(client: Any) -> None:
    asked = {"model": "toy", "messages": MESSAGES, "max_completion_tokens": 10, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage.completion_tokens <= 10
    events = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    assert text == whole.choices[0].message.content
    assert events[-1].usage == whole.usage


def test_own_sampling_values_go_beside_openais(client: Any) -> None:
    def text(seed: int) -> str:
        return (
            client.completions.create(
                model="toy",
                prompt="def",
                max_tokens=30,
                temperature=3.0,
                seed=seed,
                extra_body={"top_k": 200, "repetition_penalty": 1.1},
            )
            .choices[0]
            .text
        )

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_errors_are_those_the_client_knows(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
        client.completions.create(model="other", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="context") as long:
        client.chat.completions.create(model="toy", messages=MESSAGES, max_tokens=99_999)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError, match="top_p"):
        client.completions.create(model="toy", prompt="a", top_p=7)


def test_a_stream_can_be_closed_in_the_middle(client: Any) -> None:
    for _ in range(10):
        with client.completions.create(
            model="toy", prompt="def add", max_tokens=10_000, stream=True
        ) as stream:
            next(iter(stream))
    assert client.models.list().data
