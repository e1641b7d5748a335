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
    from trilith.serving.asked import Served


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
        "--running", type=int, default=4, metavar="N", help="requests that take turns; default 4"
    )
    parser.add_argument(
        "--waiting",
        type=int,
        default=252,
        metavar="N",
        help="more that wait; then 503; default 252",
    )
    parser.add_argument("--max-body-bytes", type=int, default=2**20, metavar="N")
    parser.add_argument(
        "--time-limit", type=float, default=300.0, metavar="S", help="seconds of a request, 300"
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
    from trilith.serving import TurnTaker

    if options.waiting < 0:
        raise ValueError(f"--waiting={options.waiting} must not be negative")
    set_threads(options)
    limits = Limits(options.running + options.waiting, options.max_body_bytes, options.time_limit)
    served = _load(options)
    with open_socket(options.host, options.port) as listener:
        turns = TurnTaker(served.engine, served.tokenizer, num_running=options.running)
        try:
            server = make_server(build_app(served, turns=turns, limits=limits))
            print(f"{served.name} at {_address(options.host, listener)}; Ctrl-C stops", flush=True)
            server.run(sockets=[listener])
        finally:
            # After a second Ctrl-C the application did not.
            turns.close()
    return 0


def _load(options: argparse.Namespace) -> "Served":
    from trilith.serving.asked import Served
    from trilith.tokens import Tokenizer

    engine = load_engine(options)
    context = engine.config.context if options.context is None else options.context
    if not 1 <= context <= engine.config.context:
        raise ValueError(
            f"--context={context} must be in 1..{engine.config.context}, the model's own"
        )
    tokenizer = Tokenizer.from_bytes(engine.file.tokenizer_bytes)
    return Served(engine, tokenizer, options.name or options.file.stem, context)


def _address(host: str, listener: Any) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/v1"
