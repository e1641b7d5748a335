"""`trilith chat`: talk with a packed model in the terminal."""

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trilith.cli.generation import (
    add_engine_options,
    add_sampling_options,
    add_threads_option,
    load_engine,
    read_context,
    read_sampling,
    set_threads,
)

if TYPE_CHECKING:
    from trilith.runtime import Engine, KeptCaches, SamplingConfig
    from trilith.serving import Conversation, Fitted

_QUIT, _RESET = "/quit", "/reset"


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("chat", help="talk with a packed model in the terminal")
    parser.add_argument("file", type=Path, help="packed model (.safetensors)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="of one answer; default 256"
    )
    parser.add_argument("--context", type=int, help="tokens of a conversation; default: all")
    add_sampling_options(parser)
    add_engine_options(parser)
    add_threads_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read lines and answer them, until /quit or the end of the input."""
    from trilith.packed.tokenizer import load_tokenizer
    from trilith.runtime import KeptCaches
    from trilith.serving import Conversation

    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens={options.max_new_tokens} must be at least 1")
    sampling = read_sampling(options)
    set_threads(options)
    engine = load_engine(options, context=options.context)
    tokenizer = load_tokenizer(engine.file)
    conversation = Conversation(tokenizer, context=read_context(options, engine))
    _prepare_input()
    _note(f"{options.file.stem}, {conversation.context} tokens of context")
    _note(f"{_RESET} forgets the conversation, {_QUIT} ends; Ctrl-C stops an answer")
    # The cache of the last turn; one on a GPU is not kept.
    kept = KeptCaches(1) if engine.device.type == "cpu" else None
    _talk(_Chat(engine, conversation, sampling, options.max_new_tokens, kept))
    return 0


class _Chat(NamedTuple):
    engine: "Engine"
    conversation: "Conversation"
    sampling: "SamplingConfig"
    max_new_tokens: int
    kept: "KeptCaches | None"


def _talk(chat: _Chat) -> None:
    while (line := _read_line()) is not None:
        command = line.strip()
        if command == _QUIT:
            return
        if command == _RESET:
            chat.conversation.reset()
            _note("the conversation is forgotten")
        elif line.startswith("/"):
            _note(f"{command} is no command; {_RESET} and {_QUIT} are. A space before it says it")
        elif command:
            _answer(chat, line)


def _answer(chat: _Chat, prompt: str) -> None:
    """Print the answer as it comes, and keep the exchange."""
    from trilith.runtime import GenerateConfig
    from trilith.serving import Order, chat_stop_ids, run_order

    conversation = chat.conversation
    try:
        fitted = conversation.fit(prompt, wanted=chat.max_new_tokens)
    except ValueError as error:
        _note(str(error))
        return
    _note_dropped(chat, fitted)
    generation = GenerateConfig(fitted.room, chat_stop_ids(conversation.tokenizer), chat.sampling)
    order = Order(tuple(fitted.prompt_ids), generation)
    said, reason = "", None
    try:
        pieces = run_order(
            order, engine=chat.engine, tokenizer=conversation.tokenizer, kept=chat.kept
        )
        for piece in pieces:
            said += piece.text
            reason = piece.finish_reason
            print(piece.text, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print()
        _note("stopped")
    if reason == "length":
        _note_cut(chat, fitted)
    # What was said so far counts, also after Ctrl-C: the reader saw it.
    conversation.add(prompt, said)


def _note_dropped(chat: _Chat, fitted: "Fitted") -> None:
    if not fitted.dropped:
        return
    first = fitted.dropped[0].prompt.strip()
    excerpt = first if len(first) <= 40 else f"{first[:39]}…"
    _note(
        f"the context of {chat.conversation.context} tokens is full: forgot the oldest "
        f"{len(fitted.dropped)} of {len(fitted.dropped) + len(chat.conversation.exchanges)} "
        f'exchanges, from "{excerpt}" on'
    )


def _note_cut(chat: _Chat, fitted: "Fitted") -> None:
    if fitted.room < chat.max_new_tokens:
        _note(f"the answer ends here: the context of {chat.conversation.context} tokens is full")
    else:
        _note(f"the answer ends here: --max-new-tokens={chat.max_new_tokens}")


def _prepare_input() -> None:
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A byte that is not UTF-8 must not end the conversation.
        sys.stdin.reconfigure(errors="replace")
    with contextlib.suppress(ImportError):
        # With it, `input` knows arrow keys and earlier lines.
        import readline  # noqa: F401


def _read_line() -> str | None:
    """A line without its end; empty after Ctrl-C, None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        _note(f"{_QUIT} ends")
        return ""


def _note(text: str) -> None:
    """Say something beside the conversation, which alone goes to stdout."""
    print(f"[{text}]", file=sys.stderr, flush=True)
