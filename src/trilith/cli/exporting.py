"""`trilith export`: a packed file for llama.cpp or for transformers."""

import argparse
from pathlib import Path
from typing import Any

from trilith.cli.output import add_output, require_file_place, require_free

_TARGETS = ("gguf", "huggingface")


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("export", help="write a packed model for other programs")
    parser.add_argument("file", type=Path, help="packed model (.safetensors)")
    parser.add_argument("--to", choices=_TARGETS, required=True)
    add_output(parser, metavar="PATH", help_text="a .gguf file, or a folder for huggingface")
    parser.add_argument(
        "--type",
        help="of the weights: tq2_0, tq1_0 or f16 in gguf; float32, bfloat16 or float16 in "
        "huggingface; default: the first",
    )
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="metrics.json of the stage evaluate, for the model card of huggingface",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export, and say what was written."""
    require_free(options, source=options.file)
    try:
        kind = _export_gguf(options) if options.to == "gguf" else _export_huggingface(options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; the extra has it: pip install -c constraints.txt -e '.[export]'"
        ) from None
    print(f"wrote {options.out}: {kind}")
    return 0


def _export_gguf(options: argparse.Namespace) -> str:
    from trilith.exports.gguf_file import GGUF_TYPES, write_gguf
    from trilith.packed import read_packed

    require_file_place(options, suffix=".gguf")
    if options.metrics is not None:
        raise ValueError("--metrics has no effect on gguf, which has no model card; leave it out")
    weights = _type(options, GGUF_TYPES)
    write_gguf(read_packed(options.file), options.out, weights=weights)
    return f"{options.out.stat().st_size:,} bytes, projections as {weights.upper()}"


def _export_huggingface(options: argparse.Namespace) -> str:
    from trilith.exports.huggingface import HUGGINGFACE_TYPES, write_huggingface
    from trilith.exports.model_card import read_figures
    from trilith.packed import read_packed

    if options.out.exists() and not (options.out / "config.json").is_file():
        # --force must not sweep away a folder that was never a model's.
        raise ValueError(f"--out={options.out} is there and no model's folder; give another place")
    weights = _type(options, HUGGINGFACE_TYPES)
    figures = None
    if options.metrics is not None:
        figures = read_figures(options.metrics, packed=options.file)
    write_huggingface(read_packed(options.file), options.out, weights=weights, figures=figures)
    return f"weights in {weights}, tokenizer, model card; transformers loads it offline"


def _type(options: argparse.Namespace, known: tuple[str, ...]) -> str:
    if options.type is None:
        return known[0]
    if options.type not in known:
        raise ValueError(
            f"--type={options.type} is no type of {options.to}; choose {', '.join(known)}"
        )
    return options.type
