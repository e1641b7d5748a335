"""`trilith serve`: a packed model over HTTP, by OpenAI's interface."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilith.cli.generation import (
    add_engine_options,
    add_threads_option,
    load_engine,
    set_threads,
)

if TYPE_CHECKING:
    from trilith.runtime import KeptCaches
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
    parser.add_argument(
        "--running",
        type=int,
        default=8,
        metavar="N",
        help="requests that decode together; default 8",
    )
    parser.add_argument(
        "--waiting",
        type=int,
        default=248,
        metavar="N",
        help="more that wait; then 503; default 248",
    )
    parser.add_argument("--max-body-bytes", type=int, default=2**20, metavar="N")
    parser.add_argument(
        "--time-limit", type=float, default=300.0, metavar="S", help="seconds of a request, 300"
    )
    parser.add_argument(
        "--connections",
        type=int,
        default=1000,
        metavar="N",
        help="open at once; further ones are closed; 1000",
    )
    parser.add_argument(
        "--idle-limit",
        type=int,
        default=30,
        metavar="S",
        help="seconds for the header of a request, and for a client that reads nothing; 30",
    )
    parser.add_argument(
        "--kept-caches",
        type=int,
        metavar="N",
        help="prompts whose caches are kept for those that begin alike; default 8, on a GPU 0",
    )
    add_engine_options(parser)
    add_threads_option(parser)
    parser.set_defaults(run=run)


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
    served = _load(options)
    kept = _kept_caches(options, served)
    with open_socket(options.host, options.port) as listener:
        batcher = Batcher(served.engine, served.tokenizer, num_running=options.running, kept=kept)
        try:
            server = make_server(
                build_app(served, batcher=batcher, limits=limits),
                num_connections=options.connections,
                idle_s=options.idle_limit,
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

    engine = load_engine(options)
    context = engine.config.context if options.context is None else options.context
    if not 1 <= context <= engine.config.context:
        raise ValueError(
            f"--context={context} must be in 1..{engine.config.context}, the model's own"
        )
    tokenizer = load_tokenizer(engine.file)
    return Served(engine, tokenizer, options.name or options.file.stem, context)


def _kept_caches(options: argparse.Namespace, served: "Served") -> "KeptCaches | None":
    from trilith.runtime import KeptCaches

    number, on_gpu = options.kept_caches, served.engine.device.type != "cpu"
    if number is None:
        number = 0 if on_gpu else _KEPT_CACHES
    if number < 0:
        raise ValueError(f"--kept-caches={number} must not be negative; 0 keeps none")
    if number and on_gpu:
        raise ValueError(
            f"--kept-caches={number} has no effect on {served.engine.device}: caches on a GPU are "
            "not kept; leave it out, or use the CPU"
        )
    return KeptCaches(number) if number else None


def _address(host: str, listener: Any) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/v1"
