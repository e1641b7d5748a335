"""`trilith verify`: is a packed file whole? Every hash anew, every damage named."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilith.cli.table import format_table

if TYPE_CHECKING:
    from trilith.packed import Verification


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("verify", help="check every byte of a packed file")
    parser.add_argument("file", type=Path, help="packed model (.safetensors)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what was checked and what is wrong; return 1 if anything is."""
    from trilith.packed import verify_packed

    found = verify_packed(options.file)
    if found.tensors:
        print(format_table(_parts(found)))
    for problem in found.problems:
        print(f"damaged: {problem}")
    if found.problems:
        return 1
    print(f"{options.file} is whole: every tensor is as its manifest says, and the model builds")
    return 0


def _parts(found: "Verification") -> list[list[str]]:
    from trilith.packed.manifest import PARTS

    rows = [["part", "tensors", "whole"]]
    for part in PARTS:
        checks = [check for check in found.tensors if check.part == part]
        if checks:
            num_whole = sum(check.is_whole for check in checks)
            rows.append([part, str(len(checks)), str(num_whole)])
    return rows
