"""`trilith pack`: any checkpoint that can be imported, or our own, as one packed file."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilith.cli.output import add_output, require_file_place, require_free
from trilith.cli.project import compose_pack
from trilith.cli.table import format_table

if TYPE_CHECKING:
    from trilith.imports import Source
    from trilith.packed import PackConfig

# Keys of the section `pack`, for a model on a grid.
_CHOICES = {
    "codec": "of the projections: smallest, base3, bits1, bits2, bits3 or planes",
    "embedding": "its precision: f32, bf16, int8, int4 or int3",
    "head": "precision of a head that is not the embedding; default with --embedding: the same",
    "group_size": "features of a row that share a scale in int4 and int3",
}


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("pack", help="pack a checkpoint to one self-contained file")
    parser.add_argument(
        "path",
        type=Path,
        help="a checkpoint of Trilith, a Hugging Face folder of the Llama family, a GGUF file, "
        "a llama2.c or bitllama2.c .bin, or a packed file",
    )
    add_output(parser, metavar="FILE", help_text="the .safetensors file to write")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="SentencePiece model, tokenizer.json with the files beside it, or tokenizer.bin",
    )
    parser.add_argument("--name", help="of the model; default: that of its folder or file")
    parser.add_argument(
        "--grid",
        help="put a dense model on this grid, with fitted row scales and without training: "
        "ternary, prime7, planes, ...",
    )
    for key, text in _CHOICES.items():
        kind = int if key == "group_size" else str
        hint = text if "default" in text else f"{text}; default: what the project's conf/ says"
        parser.add_argument(f"--{key.replace('_', '-')}", type=kind, help=hint)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Pack, and print what the file weighs."""
    from trilith.cli.info import size_table
    from trilith.imports import open_source, pack_on_grid
    from trilith.packed.shelf import drawn_proof_tokens, pack_checkpoint
    from trilith.quant import QuantConfig
    from trilith.tokens import Tokenizer

    require_file_place(options, suffix=".safetensors")
    require_free(options, source=options.path)
    source = open_source(options.path, tokenizer=options.tokenizer)
    if options.name is not None:
        source = source.renamed(options.name)
    if source.tokenizer is None:
        raise ValueError(f"{source.path} comes without its tokenizer; give it with --tokenizer")
    config = _config(source, options)
    tokenizer = Tokenizer(source.tokenizer, origin=f"the tokenizer of {source.path}")
    if options.grid is not None:
        quant = QuantConfig(options.grid, "least_squares", "row", None, 8)
        report = pack_on_grid(
            source, path=options.out, quant=quant, config=config, tokenizer=tokenizer
        )
    else:
        report = pack_checkpoint(
            source.load() if source.is_own else source.load_with_origin(),
            path=options.out,
            config=config,
            tokenizer=tokenizer,
            proof_tokens=drawn_proof_tokens(source.model),
        )
    print(format_table(size_table(report)))
    print(
        f"wrote {options.out}: {report.bits_per_weight:.3f} bits per projection weight; logits "
        f"equal to those of {source.path}{_on_grid(options)}, stored precision applied"
    )
    return 0


def _on_grid(options: argparse.Namespace) -> str:
    return "" if options.grid is None else f" on grid {options.grid}"


def _config(source: "Source", options: argparse.Namespace) -> "PackConfig":
    from trilith.packed import DENSE

    values = {key: getattr(options, key) for key in _CHOICES}
    given = {key: value for key, value in values.items() if value is not None}
    if source.quant is not None or options.grid is not None:
        return compose_pack(given)
    if "codec" in given:
        raise ValueError(
            f"{source.path} is dense and its projections stay in bfloat16, where --codec has no "
            "effect; leave it out, or choose a --grid"
        )
    return replace(DENSE, **given)
