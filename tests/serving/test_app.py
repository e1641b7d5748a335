"""The server over real sockets: answers, streams, errors in OpenAI's form."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.serving.running import CONTEXT, LIMITS, Running, running

from trilith.evolution import Turn
from trilith.runtime import Engine, GenerateConfig, SamplingConfig
from trilith.serving import chat_prompt
from trilith.tokens import Tokenizer

GREEDY: dict[str, Any] = {"model": "toy", "temperature": 0}
HELLO = [{"role": "user", "content": "def add"}]


@pytest.fixture(scope="module")
def server(engine: Engine, tokenizer: Tokenizer) -> Iterator[Running]:
    with running(engine, tokenizer) as found:
        yield found


def _greedy(engine: Engine, tokenizer: Tokenizer, ids: list[int], num_new: int) -> str:
    config = GenerateConfig(num_new, (2, 6), SamplingConfig(0.0, None, None, 1.0, 0))
    return tokenizer.decode(engine.generate(ids, config=config))


def _text(choice: dict[str, Any]) -> str:
    """Of a choice of any form."""
    if "text" in choice:
        return choice["text"]
    return choice.get("message", choice.get("delta", {})).get("content", "")


def test_the_model_is_listed(server: Running) -> None:
    listed = server.get("models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["toy"]
    assert server.get("models/toy").json() == listed["data"][0]


@pytest.mark.parametrize("prompt", ["def add", ["für 木"], [1, 50, 60], [[7]]], ids=str)
def test_a_completion_is_what_the_engine_generates(
    server: Running, engine: Engine, tokenizer: Tokenizer, prompt: Any
) -> None:
    ids = {"def add": [1, *tokenizer.encode("def add")], "[[7]]": [7]}.get(str(prompt), prompt)
    ids = [1, *tokenizer.encode("für 木")] if ids == ["für 木"] else ids
    answer = server.post("completions", GREEDY | {"prompt": prompt, "max_tokens": 12})
    body = answer.json()
    assert (answer.status, body["object"], body["model"]) == (200, "text_completion", "toy")
    (choice,) = body["choices"]
    assert choice["text"] == _greedy(engine, tokenizer, ids, 12)
    assert choice["finish_reason"] == "length"
    usage = {"prompt_tokens": len(ids), "completion_tokens": 12, "total_tokens": len(ids) + 12}
    assert body["usage"] == usage


def test_a_chat_answers_the_whole_conversation(
    server: Running, engine: Engine, tokenizer: Tokenizer
) -> None:
    parts = [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": parts},
    ]
    earlier = [Turn("be brief\n\na", "b")]
    ids = chat_prompt("cd", earlier=earlier, tokenizer=tokenizer)
    body = server.post("chat/completions", GREEDY | {"messages": messages, "max_tokens": 9}).json()
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == _greedy(engine, tokenizer, ids, 9)
    assert body["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_stream_joined_is_the_whole_answer(server: Running, path: str) -> None:
    asked = GREEDY | {"max_tokens": 20, "stop": None}
    asked |= {"messages": HELLO} if "chat" in path else {"prompt": "def add"}
    whole = server.post(path, asked).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = server.post(path, asked | options)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, usage = answer.events()
    assert "".join(_text(event["choices"][0]) for event in events) == _text(whole["choices"][0])
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert set(reasons[:-1]) == {None}
    assert reasons[-1] == whole["choices"][0]["finish_reason"]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert len({event["id"] for event in [*events, usage]}) == 1
    assert len(events) > 3
    assert "usage" not in server.post(path, asked | {"stream": True}).events()[-1]


def test_a_seed_decides_the_draws_and_no_seed_leaves_them_free(server: Running) -> None:
    def text(**more: Any) -> str:
        asked = {"model": "toy", "prompt": "def", "max_tokens": 30, "temperature": 3.0}
        return server.post("completions", asked | {"top_p": 0.99} | more).json()["choices"][0][
            "text"
        ]

    assert text(seed=3) == text(seed=3)
    assert text(seed=3) != text(seed=4)
    assert len({text() for _ in range(3)}) > 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_ends_before_a_stop_string(server: Running, is_stream: bool) -> None:
    asked = GREEDY | {"prompt": "def add", "max_tokens": 40}
    free = server.post("completions", asked).json()["choices"][0]["text"]
    stop = free[7:10]
    answer = server.post("completions", asked | {"stop": ["never", stop], "stream": is_stream})
    choices = [event["choices"][0] for event in (answer.events() if is_stream else [answer.json()])]
    assert "".join(map(_text, choices)) == free[: free.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


def test_an_answer_may_fill_the_context_to_its_last_token(
    engine: Engine, tokenizer: Tokenizer
) -> None:
    asked = GREEDY | {"prompt": [1] * 96}
    with running(engine, tokenizer, context=100) as small:
        assert small.post("completions", asked | {"max_tokens": 5}).status == 200
        # Without a number, 16 tokens are cut to what is left.
        assert small.post("completions", asked).json()["usage"]["completion_tokens"] <= 5
        assert small.post("completions", asked | {"max_tokens": 6}).status == 400


CHAT_ERRORS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "messages", "at least one message"),
    ({"messages": []}, "messages", "at least one message"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages", "empty"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "tool"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "must be a text"),
    ({"messages": HELLO + HELLO}, "messages", "in turn"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages", "nobody"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "surrogate"),
    ({"messages": [{"role": "user", "content": "x" * 50_000}]}, "messages", "shorten"),
    ({"messages": HELLO, "max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "the same"),
    ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools", "not supported"),
]
COMPLETION_ERRORS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "must be a text"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": [[]]}, "prompt", "empty"),
    ({"prompt": ["a", "b"]}, "prompt", "one prompt"),
    ({"prompt": [1, True]}, "prompt", "must be a text"),
    ({"prompt": [1, 300]}, "prompt", "0..299"),
    ({"prompt": "\udfff"}, "prompt", "surrogate"),
    ({"prompt": [1] * (CONTEXT + 2)}, "prompt", f"context has {CONTEXT} tokens"),
    ({"prompt": "a", "max_tokens": CONTEXT + 1}, "prompt", "context"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
    ({"prompt": "a", "max_tokens": 1.5}, "max_tokens", "whole number"),
    ({"prompt": "a", "max_tokens": 10**40}, "prompt", "context"),
    ({"prompt": "a", "temperature": -1}, "temperature", "temperature=-1"),
    ({"prompt": "a", "temperature": "hot"}, "temperature", "must be a number"),
    ({"prompt": "a", "temperature": True}, "temperature", "must be a number"),
    ({"prompt": "a", "temperature": 10**400}, "temperature", "too large"),
    ({"prompt": "a", "temperature": 1e-99}, "temperature", "temperature=1e-99"),
    ({"prompt": "a", "top_p": 1.5}, "top_p", "top_p=1.5"),
    ({"prompt": "a", "top_k": 0}, "top_k", "at least 1"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", "must be in"),
    ({"prompt": "a", "seed": 2**64}, "seed", "seed="),
    ({"prompt": "a", "seed": "x"}, "seed", "whole number"),
    ({"prompt": "a", "stop": ""}, "stop", "none empty"),
    ({"prompt": "a", "stop": ["a"] * 5}, "stop", "up to 4"),
    ({"prompt": "a", "stop": [1]}, "stop", "texts"),
    ({"prompt": "a", "stream": "yes"}, "stream", "true or false"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", "needs"),
    ({"prompt": "a", "n": 2}, "n", "not supported"),
    ({"prompt": "a", "logprobs": 0}, "logprobs", "not supported"),
    ({"prompt": "a", "frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
    ({"prompt": "a", "tempreature": 1}, "tempreature", "unknown"),
    ({"prompt": "a", "messages": HELLO}, "messages", "unknown"),
    ({"prompt": "a", "\ud800": 1}, "\ud800", "unknown"),
]


@pytest.mark.parametrize(
    ("path", "fields", "param", "text"),
    [("chat/completions", *case) for case in CHAT_ERRORS]
    + [("completions", *case) for case in COMPLETION_ERRORS],
)
def test_what_cannot_be_answered_is_an_error_that_names_the_field(
    server: Running, path: str, fields: dict[str, Any], param: str, text: str
) -> None:
    answer = server.post(path, {"model": "toy"} | fields)
    error = answer.json()["error"]
    assert (answer.status, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert text in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("neutral", [{"n": 1, "user": "me", "top_p": 1, "echo": None}])
def test_neutral_values_of_what_is_not_there_are_accepted(
    server: Running, neutral: dict[str, Any]
) -> None:
    neutral = neutral | {"frequency_penalty": 0.0, "logit_bias": {}}
    assert server.post("completions", GREEDY | {"prompt": "a"} | neutral).status == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b'{"model": NaN}', b"[" * 50_000, b"1" * 9_000],
    ids=lambda body: repr(body[:9]),
)
def test_a_body_that_is_no_json_object_is_an_error(server: Running, body: bytes) -> None:
    answer = server.post("completions", body)
    assert answer.status == 400
    assert "the body" in answer.json()["error"]["message"]


@pytest.mark.parametrize("model", ["gpt-4", 7, "\ud800"])
def test_an_unknown_model_is_not_found(server: Running, model: Any) -> None:
    answer = server.post("completions", {"model": model, "prompt": "a"})
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "toy" in error["message"]
    assert server.get("models/other").status == 404
    assert server.post("completions", {"prompt": "a"}).status == 400


def test_unknown_routes_and_methods_are_errors_of_the_same_form(server: Running) -> None:
    for answer, status in [
        (server.get("embeddings"), 404),
        (server.get("completions"), 405),
        (server.post("models", {}), 405),
    ]:
        assert answer.status == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_over_the_limit_is_refused(server: Running) -> None:
    answer = server.post("completions", b"x" * (LIMITS.body_bytes + 1))
    assert (answer.status, answer.json()["error"]["code"]) == (413, "body_too_large")
