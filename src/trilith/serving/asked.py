"""What a client asks for: the JSON of a request, checked, as an order for the model.

Fields are OpenAI's, with `top_k` and `repetition_penalty` beside them. A field that would change
the answer in a way that is not there is an error; its neutral value, and null, are not.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from trilith.evolution import Turn
from trilith.runtime import Engine, GenerateConfig, SamplingConfig
from trilith.serving.pieces import Order
from trilith.serving.template import chat_prompt, chat_stop_ids
from trilith.tokens import Tokenizer

# Tokens of a completion that does not say, as OpenAI has it; a chat answer may fill the context.
DEFAULT_COMPLETION_TOKENS = 16
MAX_STOP_STRINGS = 4

_COMMON = {
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    # Names the client's own user; nothing is made of it.
    "user",
}
# Fields that are understood in this one value alone.
_NEUTRAL: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "echo": False,
    "suffix": "",
    "store": False,
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
}


class RequestError(Exception):
    """A request that is answered by an error of OpenAI's form."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True)
class Served:
    """The model that answers: its name, and how many tokens prompt and answer may have."""

    engine: Engine
    tokenizer: Tokenizer
    name: str
    context: int


class Asked(NamedTuple):
    """A request that was understood."""

    order: Order
    is_stream: bool
    includes_usage: bool


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a body that must be one JSON object.

    Raises:
        RequestError: it is not.
    """
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(content, dict):
        raise RequestError("the body must be a JSON object")
    return {key: value for key, value in content.items() if value is not None}


def read_completion(fields: Mapping[str, Any], served: Served) -> Asked:
    """Read a request for /v1/completions.

    Raises:
        RequestError: it asks for what is unknown, wrong, or too long.
    """
    _check_names(fields, own={"prompt"})
    _check_model(fields, served)
    ids = _completion_ids(fields.get("prompt"), served.tokenizer)
    wanted = _integer(fields, "max_tokens")
    room = _room(ids, wanted, served, param="prompt")
    most = min(DEFAULT_COMPLETION_TOKENS, room) if wanted is None else wanted
    return _asked(fields, ids, GenerateConfig(most, served.tokenizer.stop_ids, _sampling(fields)))


def read_chat(fields: Mapping[str, Any], served: Served) -> Asked:
    """Read a request for /v1/chat/completions.

    Raises:
        RequestError: it asks for what is unknown, wrong, or too long.
    """
    _check_names(fields, own={"messages", "max_completion_tokens"})
    _check_model(fields, served)
    *earlier, (prompt, _) = _exchanges(fields.get("messages"))
    try:
        ids = chat_prompt(prompt, earlier=earlier, tokenizer=served.tokenizer)
    except ValueError as error:
        raise RequestError(str(error), param="messages") from None
    if {"max_tokens", "max_completion_tokens"} <= fields.keys():
        _refuse("max_tokens", "max_tokens and max_completion_tokens are the same; give one")
    wanted = _integer(fields, "max_completion_tokens") or _integer(fields, "max_tokens")
    room = _room(ids, wanted, served, param="messages")
    generation = GenerateConfig(wanted or room, chat_stop_ids(served.tokenizer), _sampling(fields))
    return _asked(fields, ids, generation)


def _asked(fields: Mapping[str, Any], ids: list[int], generation: GenerateConfig) -> Asked:
    is_stream = _flag(fields, "stream")
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        _refuse("stream_options", "stream_options knows include_usage alone")
    if options and not is_stream:
        _refuse("stream_options", "stream_options needs stream=true")
    order = Order(tuple(ids), generation, _stop_strings(fields))
    return Asked(order, is_stream, _flag(options, "include_usage"))


def _check_names(fields: Mapping[str, Any], *, own: set[str]) -> None:
    for name, value in fields.items():
        if name in _COMMON | own:
            continue
        if name not in _NEUTRAL:
            raise RequestError(
                f"the parameter {name} is unknown here; leave it out",
                param=name,
                code="unknown_parameter",
            )
        neutral = _NEUTRAL[name]
        # False is 0 in Python, and not in JSON.
        if value != neutral or isinstance(value, bool) != isinstance(neutral, bool):
            raise RequestError(
                f"{name}={json.dumps(value)[:80]} is not supported; leave it out",
                param=name,
                code="unsupported_value",
            )


def _check_model(fields: Mapping[str, Any], served: Served) -> None:
    name = fields.get("model")
    if name is None:
        _refuse("model", f"model is missing; this server has {served.name}")
    if name != served.name:
        raise RequestError(
            f"the model {json.dumps(name)[:80]} does not exist; this server has {served.name}",
            status=404,
            param="model",
            code="model_not_found",
        )


def _completion_ids(prompt: Any, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text behind a begin mark, or ids as they are given."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if not prompt and isinstance(prompt, str | list):
        _refuse("prompt", "the prompt is empty; give at least one character or token")
    if isinstance(prompt, str):
        try:
            return [tokenizer.bos_id, *tokenizer.encode(prompt)]
        except ValueError as error:
            raise RequestError(str(error), param="prompt") from None
    if not isinstance(prompt, list) or not all(_is_integer(token) for token in prompt):
        _refuse("prompt", "prompt must be a text, or a list of token ids; one prompt a request")
    if not all(0 <= token < tokenizer.vocab_size for token in prompt):
        _refuse("prompt", f"token ids must be in 0..{tokenizer.vocab_size - 1}")
    return prompt


def _exchanges(messages: Any) -> list[Turn]:
    """The turns of a chat, the last one without an answer; a system message joins the first."""
    if not isinstance(messages, list) or not messages:
        _refuse("messages", "messages must be a list with at least one message")
    spoken = [_message(message, place) for place, message in enumerate(messages)]
    system = spoken.pop(0).text if spoken[0].role == "system" else None
    roles = [message.role for message in spoken]
    if not len(roles) % 2 or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        _refuse(
            "messages",
            "messages must be by user and assistant in turn, after at most one system message, "
            f"the last by the user; they are by {', '.join(roles[:9]) or 'nobody'}",
        )
    texts = [message.text for message in spoken]
    if not all(texts[::2]):
        _refuse("messages", "a message of the user is empty; give at least one character")
    if system:
        texts[0] = f"{system}\n\n{texts[0]}"
    return [Turn(*pair) for pair in zip(texts[::2], [*texts[1::2], ""], strict=True)]


class _Message(NamedTuple):
    role: str
    text: str


def _message(message: Any, place: int) -> _Message:
    name = f"messages[{place}]"
    if not isinstance(message, dict) or message.keys() - {"role", "content", "name"}:
        _refuse(name, f"{name} must be an object with role and content")
    role = {"developer": "system"}.get(str(message.get("role")), message.get("role"))
    if role not in ("system", "user", "assistant"):
        _refuse(name, f"{name}.role={json.dumps(role)[:80]} must be system, user or assistant")
    content = message.get("content")
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        _refuse(name, f"{name}.content must be a text, or a list of parts of type text")
    return _Message(str(role), content)


def _is_text_part(part: Any) -> bool:
    is_text = isinstance(part, dict) and part.get("type") == "text"
    return is_text and isinstance(part.get("text"), str)


def _room(ids: list[int], wanted: int | None, served: Served, *, param: str) -> int:
    """Tokens that an answer may have."""
    # The last token of an answer is handed out and never run.
    room = served.context - len(ids) + 1
    if (wanted or 1) > room:
        asked = "" if wanted is None else f" and {wanted} new ones"
        raise RequestError(
            f"the context has {served.context} tokens and the prompt {len(ids)}{asked}; shorten "
            "it, or ask for less",
            param=param,
            code="context_length_exceeded",
        )
    return room


def _sampling(fields: Mapping[str, Any]) -> SamplingConfig:
    seed, top_k = _integer(fields, "seed", least=None), _integer(fields, "top_k")
    top_p = _number(fields, "top_p", default=1.0)
    try:
        return SamplingConfig(
            temperature=_number(fields, "temperature", default=1.0),
            top_k=top_k,
            # OpenAI's clients say 1 for all.
            top_p=None if top_p == 1 else top_p,
            repetition_penalty=_number(fields, "repetition_penalty", default=1.0),
            seed=secrets.randbits(63) if seed is None else seed,
        )
    except ValueError as error:
        raise RequestError(str(error), param=str(error).partition("=")[0]) from None


def _stop_strings(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    texts = [stop] if isinstance(stop, str) else stop
    is_list = isinstance(texts, list) and len(texts) <= MAX_STOP_STRINGS
    if not is_list or not all(isinstance(text, str) and text for text in texts):
        _refuse("stop", f"stop must be a text or up to {MAX_STOP_STRINGS} texts, none empty")
    return tuple(texts)


def _integer(fields: Mapping[str, Any], name: str, *, least: int | None = 1) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not _is_integer(value) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        _refuse(name, f"{name}={json.dumps(value)[:80]} must be a whole number{bound}")
    return value


def _number(fields: Mapping[str, Any], name: str, *, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(name, f"{name}={json.dumps(value)[:80]} must be a number")
    try:
        return float(value)
    except OverflowError:
        _refuse(name, f"{name} is too large")


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        _refuse(name, f"{name}={json.dumps(value)[:80]} must be true or false")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(param: str, message: str) -> NoReturn:
    raise RequestError(message, param=param, code="invalid_value")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
