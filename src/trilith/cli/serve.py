"""`trilith serve`: a packed model over HTTP, by OpenAI's interface."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilith.cli.generation import (
    add_engine_options,
    add_threads_option,
    cache_config,
    layers_of,
    load_engine,
    read_context,
    set_threads,
)

if TYPE_CHECKING:
    import torch

    from trilith.packed import PackedFile
    from trilith.runtime import InferenceSetup, KeptCaches
    from trilith.serving.asked import Served

_KEPT_CACHES = 8


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "serve", help="serve a packed model over HTTP (OpenAI's completions and chat)"
    )
    parser.add_argument("file", type=Path, help="packed model (.safetensors)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="there is no login: think before 0.0.0.0"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--name", help="of the model for clients; default: the file's, less suffix")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer; default: all")
    _add_limits(parser)
    add_engine_options(parser)
    add_threads_option(parser)
    parser.set_defaults(run=run)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    numbers: dict[str, tuple[int | None, str]] = {
        "running": (8, "requests that decode together; default 8"),
        "waiting": (248, "more that wait; then 503; default 248"),
        "max-body-bytes": (2**20, "of a request; default 1 MiB"),
        "connections": (None, "open at once; further ones are closed; default 1000"),
        "kept-caches": (None, "prompts and answers whose caches are kept; default 8, on a GPU 0"),
        "kept-bytes": (None, "that these take at most; default: what all else leaves"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    parser.add_argument(
        "--time-limit", type=float, default=300.0, metavar="S", help="seconds of a request, 300"
    )
    parser.add_argument(
        "--idle-limit",
        type=int,
        metavar="S",
        help="seconds for the header of a request, and for a client that reads nothing; 30",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    try:
        from trilith.serving.app import Limits, build_app
        from trilith.serving.server import make_server, open_socket
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"trilith serve needs {error.name}, which is not installed; "
            "pip install 'trilith[serve]' (in a checkout: pip install -e '.[serve]')"
        ) from None
    from trilith.serving import Batcher

    if options.waiting < 0:
        raise ValueError(f"--waiting={options.waiting} must not be negative")
    set_threads(options)
    limits = Limits(options.running + options.waiting, options.max_body_bytes, options.time_limit)
    kept = _plan_caches(options)
    served = _load(options)
    with open_socket(options.host, options.port) as listener:
        batcher = Batcher(served.engine, served.tokenizer, num_running=options.running, kept=kept)
        try:
            given = {"num_connections": options.connections, "idle_s": options.idle_limit}
            server = make_server(
                build_app(served, batcher=batcher, limits=limits),
                **{key: value for key, value in given.items() if value is not None},
            )
            print(f"{served.name} at {_address(options.host, listener)}; Ctrl-C stops", flush=True)
            server.run(sockets=[listener])
        finally:
            # After a second Ctrl-C the application did not.
            batcher.close()
    return 0


def _load(options: argparse.Namespace) -> "Served":
    from trilith.packed.tokenizer import load_tokenizer
    from trilith.serving.asked import Served

    engine = load_engine(options, context=options.context)
    tokenizer = load_tokenizer(engine.file)
    name = options.name or options.file.stem
    return Served(engine, tokenizer, name, read_context(options, engine))


def _plan_caches(options: argparse.Namespace) -> "KeptCaches | None":
    """Where earlier prompts are kept, if there is memory for them and for all that runs.

    Raises:
        ValueError: there is none for what the options ask; the text says what needs less.
    """
    from trilith.hardware import usable_device
    from trilith.packed import open_unchecked
    from trilith.runtime import KeptCaches, kept_bytes
    from trilith.runtime.room import memory_bytes, needed_bytes, require_room

    device = usable_device(options.device)
    number = _num_kept(options, on_gpu=device.type != "cpu")
    setup = _setup(options, open_unchecked(options.file), device)
    require_room(options.file, setup, device=device)
    if not number:
        return None
    left = memory_bytes(device) - needed_bytes(setup)
    asked = kept_bytes(replace(setup, kept=number))
    if options.kept_bytes is not None:
        asked = min(asked, options.kept_bytes)
    if asked > left and (options.kept_caches, options.kept_bytes) != (None, None):
        raise ValueError(
            f"kept caches take up to {asked / 1e9:,.2f} GB, and what runs leaves "
            f"{left / 1e9:,.2f} GB of the memory; lower --kept-caches or --kept-bytes, or run less "
            f"(--running {options.running}, --context {setup.context})"
        )
    if asked > left:
        print(f"[kept caches get the {left / 1e9:,.2f} GB that are left]", file=sys.stderr)
    most = min(left, asked)
    return KeptCaches(number, max_bytes=most) if most >= 1 else None


def _setup(
    options: argparse.Namespace, file: "PackedFile", device: "torch.device"
) -> "InferenceSetup":
    """All requests at once, each with the whole context."""
    from trilith.runtime.room import setup_of, with_context

    if options.running < 1:
        raise ValueError(f"--running={options.running}: at least 1 request must run")
    layers, cache = layers_of(options), cache_config(options)
    setup = setup_of(file, cache=cache, layers=layers, device=device)
    return replace(with_context(setup, options.context), running=options.running)


def _num_kept(options: argparse.Namespace, *, on_gpu: bool) -> int:
    number = options.kept_caches
    if number is None:
        number = 0 if on_gpu else _KEPT_CACHES
    if number < 0:
        raise ValueError(f"--kept-caches={number} must not be negative; 0 keeps none")
    if number and on_gpu:
        raise ValueError(
            f"--kept-caches={number} has no effect on {options.device}: caches on a GPU are not "
            "kept; leave it out, or use the CPU"
        )
    if options.kept_bytes is not None and (options.kept_bytes < 1 or not number):
        raise ValueError(
            f"--kept-bytes={options.kept_bytes} with {number} kept caches; it must be at least 1, "
            "and has no effect where none are kept"
        )
    return number


def _address(host: str, listener: Any) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/v1"
