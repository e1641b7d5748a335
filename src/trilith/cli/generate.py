"""`trilith generate`: continue a text with a packed model, streaming."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("generate", help="continue a text with a packed model")
    parser.add_argument("file", type=Path, help="packed model (.safetensors)")
    parser.add_argument("--prompt", default="", help="text to continue; - reads it from stdin")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the most likely")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest P")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it")
    parser.add_argument("--threads", type=int, help="CPU threads; default: as torch chooses")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Stream the continuation to stdout."""
    # Torch takes seconds to import: only commands that need it pay.
    import torch

    from trilith.runtime import (
        Engine,
        GenerateConfig,
        SamplingConfig,
        stream_text,
        until_stop_string,
    )
    from trilith.tokens import StreamDecoder, Tokenizer

    sampling = SamplingConfig(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads={options.threads} must be at least 1")
        torch.set_num_threads(options.threads)
    engine = Engine.load(options.file)
    tokenizer = Tokenizer.from_bytes(engine.file.tokenizer_bytes)
    pieces = stream_text(
        engine,
        prompt=sys.stdin.read() if options.prompt == "-" else options.prompt,
        tokenizer=tokenizer,
        decoder=StreamDecoder(tokenizer),
        config=GenerateConfig(options.max_new_tokens, (tokenizer.eos_id,), sampling),
    )
    for piece in until_stop_string(pieces, stop_strings=options.stop):
        print(piece, end="", flush=True)
    print()
    return 0
