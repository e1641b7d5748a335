"""`trilith pack`: any checkpoint that can be imported, or our own, as one packed file."""

import argparse
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
    "embedding": "precision of embedding and head: bf16 or int8",
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
        "--tokenizer", type=Path, metavar="FILE", help="SentencePiece model or tokenizer.bin"
    )
    parser.add_argument("--name", help="of the model; default: that of its folder or file")
    for key, text in _CHOICES.items():
        parser.add_argument(f"--{key}", help=f"{text}; default: what the project's conf/ says")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Pack, and print what the file weighs."""
    from trilith.cli.info import size_table
    from trilith.imports import open_source
    from trilith.packed import drawn_proof_tokens, pack_checkpoint
    from trilith.tokens import Tokenizer

    require_file_place(options, suffix=".safetensors")
    require_free(options, source=options.path)
    source = open_source(options.path, tokenizer=options.tokenizer)
    if options.name is not None:
        source = source.renamed(options.name)
    if source.tokenizer is None:
        raise ValueError(f"{source.path} comes without its tokenizer; give it with --tokenizer")
    config = _config(source, options)
    proof_tokens = drawn_proof_tokens(source.model)
    report = pack_checkpoint(
        source.load() if source.is_own else source.load_with_origin(),
        path=options.out,
        config=config,
        tokenizer=Tokenizer(source.tokenizer, origin=f"the tokenizer of {source.path}"),
        proof_tokens=proof_tokens,
    )
    print(format_table(size_table(report)))
    print(
        f"wrote {options.out}: {report.bits_per_weight:.3f} bits per projection weight; logits "
        f"equal to those of {source.path} on {proof_tokens.numel()} tokens, stored precision "
        "applied"
    )
    return 0


def _config(source: "Source", options: argparse.Namespace) -> "PackConfig":
    from trilith.packed import DENSE

    values = {key: getattr(options, key) for key in _CHOICES}
    given = {key: value for key, value in values.items() if value is not None}
    if source.quant is not None:
        return compose_pack(given)
    if given:
        raise ValueError(
            f"{source.path} is dense and stays in bfloat16, where --{' and --'.join(given)} has no "
            "effect; leave it out"
        )
    return DENSE
