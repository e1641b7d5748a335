"""What a client gets: bodies and events in OpenAI's form."""

import json
import time
import uuid
from typing import Any, Literal

from trilith.serving.asked import RequestError, Served
from trilith.serving.pieces import FinishReason, Order, Piece

Kind = Literal["completion", "chat"]

LAST_EVENT = b"data: [DONE]\n\n"


class Reply:
    """The bodies of one answer: whole, or event by event; all carry the same id and time."""

    def __init__(self, kind: Kind, *, order: Order, model: str) -> None:
        self._kind = kind
        self._num_prompt = len(order.prompt_ids)
        self._model = model
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        self._id = f"{prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, text: str, *, last: Piece) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        if self._kind == "chat":
            content: dict[str, Any] = {
                "message": {"role": "assistant", "content": text, "refusal": None}
            }
        else:
            content = {"text": text}
        name = "chat.completion" if self._kind == "chat" else "text_completion"
        return self._body(name, [_choice(content, last.finish_reason)], usage=self._usage(last))

    def opening(self) -> dict[str, Any] | None:
        """The event before the first text: a chat's says who speaks."""
        if self._kind == "completion":
            return None
        return self._event({"delta": {"role": "assistant", "content": ""}}, None)

    def event(self, piece: Piece) -> dict[str, Any]:
        """The event of a piece of text, or of the end."""
        if self._kind == "completion":
            return self._event({"text": piece.text}, piece.finish_reason)
        delta = {"content": piece.text} if piece.text else {}
        return self._event({"delta": delta}, piece.finish_reason)

    def usage_event(self, last: Piece) -> dict[str, Any]:
        """The event that counts tokens, for clients that ask for it."""
        return self._body(self._event_name(), [], usage=self._usage(last))

    def _event(self, content: dict[str, Any], reason: FinishReason | None) -> dict[str, Any]:
        return self._body(self._event_name(), [_choice(content, reason)], usage=None)

    def _event_name(self) -> str:
        return "chat.completion.chunk" if self._kind == "chat" else "text_completion"

    def _usage(self, last: Piece) -> dict[str, int]:
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": last.num_tokens,
            "total_tokens": self._num_prompt + last.num_tokens,
        }

    def _body(
        self, name: str, choices: list[dict[str, Any]], *, usage: dict[str, int] | None
    ) -> dict[str, Any]:
        body = {
            "id": self._id,
            "object": name,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        return body if usage is None else body | {"usage": usage}


def model_body(served: Served, *, created: int) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {
        "id": served.name,
        "object": "model",
        "created": created,
        "owned_by": "trilith",
        "context_length": served.context,
    }


def error_body(error: RequestError) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    content = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return {"error": content}


def as_json(body: dict[str, Any]) -> bytes:
    """JSON in ASCII: even half a character that a client sent can be sent back."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii")


def as_event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + as_json(body) + b"\n\n"


def _choice(content: dict[str, Any], reason: FinishReason | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": reason}
