"""`trilith generate`: continue a text with a packed model, streaming."""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from trilith.cli.generation import (
    add_engine_options,
    add_sampling_options,
    add_threads_option,
    load_engine,
    read_sampling,
    require_sequence,
    set_threads,
)


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("generate", help="continue a text with a packed model")
    parser.add_argument("file", type=Path, help="packed model (.safetensors)")
    parser.add_argument("--prompt", default="", help="text to continue; - reads it from stdin")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    add_sampling_options(parser)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it")
    add_engine_options(parser)
    add_threads_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Stream the continuation to stdout."""
    # Torch takes seconds to import: only commands that need it pay.
    from trilith.packed.tokenizer import load_tokenizer
    from trilith.runtime import GenerateConfig, stream_text, until_stop_string
    from trilith.tokens import StreamDecoder

    sampling = read_sampling(options)
    for stop in options.stop:
        _require_utf8(stop, option="--stop")
    set_threads(options)
    engine = load_engine(options, context=options.max_new_tokens)
    tokenizer = load_tokenizer(engine.file)
    prompt = _read_prompt(options)
    # A begin mark goes in front; the last new token is never run.
    require_sequence(engine, len(tokenizer.encode(prompt)) + options.max_new_tokens)
    pieces = stream_text(
        engine,
        prompt=prompt,
        tokenizer=tokenizer,
        decoder=StreamDecoder(tokenizer),
        config=GenerateConfig(options.max_new_tokens, tokenizer.stop_ids, sampling),
    )
    for piece in until_stop_string(pieces, stop_strings=options.stop):
        print(piece, end="", flush=True)
    print()
    return 0


def _read_prompt(options: argparse.Namespace) -> str:
    if options.prompt != "-":
        return _require_utf8(options.prompt, option="--prompt")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Some locales hand on any byte, as half a character.
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise _not_utf8("--prompt -", error.object[error.start], error.start) from None


def _require_utf8(text: str, *, option: str) -> str:
    """Return a text of the command line, in which bytes that are no text are half characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _not_utf8(option, ord(text[error.start]) & 0xFF, error.start) from None
    return text


def _not_utf8(option: str, byte: int, place: int) -> ValueError:
    return ValueError(
        f"{option}: the text is not UTF-8 (0x{byte:02x} at place {place}); convert it, for "
        "instance with iconv"
    )
