"""The parser, and what every command shares: one line for an error, an exit code that says so."""

import argparse
import os
import sys
from collections.abc import Sequence

from trilith import __version__
from trilith.cli import (
    bench,
    chat,
    doctor,
    exporting,
    generate,
    importing,
    info,
    memory,
    packing,
    serve,
    verify,
)

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 after an error, 130 after Ctrl-C (argparse exits with 2)."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as head, has left; stdout must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ModuleNotFoundError) as error:
        return _failed(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        return _failed(
            f"not enough memory ({str(error) or 'for what Python asked'}); ask for fewer tokens or "
            "sequences, or see what `trilith memory` plans"
        )


def _failed(text: str) -> int:
    print(f"trilith: error: {' '.join(text.split())}", file=sys.stderr)
    return 1


def _is_lack_of_memory(error: MemoryError | RuntimeError) -> bool:
    """True of Python's own error, and of torch's on a CPU, which has no type, and on a GPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trilith", description="1.58-bit language models: run them, look into them."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate.add_parser(commands)
    chat.add_parser(commands)
    serve.add_parser(commands)
    bench.add_parser(commands)
    info.add_parser(commands)
    memory.add_parser(commands)
    importing.add_parser(commands)
    packing.add_parser(commands)
    verify.add_parser(commands)
    exporting.add_parser(commands)
    doctor.add_parser(commands)
    return parser
