"""Where a command may write: what is there is replaced only if --force says so."""

import argparse
from pathlib import Path


def add_output(parser: argparse.ArgumentParser, *, metavar: str, help_text: str) -> None:
    """Add the options --out and --force."""
    parser.add_argument("--out", type=Path, required=True, metavar=metavar, help=help_text)
    parser.add_argument("--force", action="store_true", help="replace what is there")


def require_free(options: argparse.Namespace, *, source: Path) -> None:
    """Refuse to write over anything without --force, and over the source at all.

    Raises:
        ValueError: something is there.
    """
    out: Path = options.out
    if not out.exists():
        return
    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise ValueError(f"{out} holds what is read; give another place")
    if not options.force:
        raise ValueError(f"{out} is there already; give another place, or replace it with --force")


def require_file_place(options: argparse.Namespace, *, suffix: str) -> None:
    """Refuse a folder, and a name that does not say what the file is.

    Raises:
        ValueError: the place is not fit for the file.
    """
    if options.out.suffix != suffix or options.out.is_dir():
        raise ValueError(f"--out={options.out} must be a file that ends with {suffix}")
