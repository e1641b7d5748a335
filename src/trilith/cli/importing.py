"""`trilith import`: a checkpoint of another project, or a packed file, as one of ours."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilith.imports import Source


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("import", help="turn a checkpoint of another project into ours")
    parser.add_argument(
        "path",
        type=Path,
        help="a Hugging Face folder of the Llama family, a GGUF file, a llama2.c or "
        "bitllama2.c .bin, or a packed file",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="SentencePiece model, tokenizer.json with the files beside it, or tokenizer.bin",
    )
    parser.add_argument("--name", help="of the model; default: that of its folder or file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what was found, then write the checkpoint."""
    from trilith.imports import open_source, require_free, write_import

    require_free(options.out)
    source = open_source(options.path, tokenizer=options.tokenizer)
    if options.name is not None:
        source = source.renamed(options.name)
    print(_describe(source), flush=True)
    write_import(source, options.out)
    print(_next_steps(source, options.out))
    return 0


def _describe(source: "Source") -> str:
    from trilith.model import count_parameters
    from trilith.tokens import Tokenizer

    shape = asdict(source.model)
    lines = {
        "format": source.kind,
        "model": shape.pop("name"),
        "parameters": f"{count_parameters(source.model).total:,}",
        "weights": source.stored,
        "tokenizer": "none beside it",
        "licence": source.licence or "no file beside it says; ask its authors",
    }
    if source.tokenizer is not None:
        tokenizer = Tokenizer.from_bytes(source.tokenizer)
        ids = ", ".join(f"{name}={token}" for name, token in tokenizer.special_ids.items())
        lines["tokenizer"] = f"{tokenizer.vocab_size} ids, sha256 {tokenizer.sha256[:12]}; {ids}"
    return "\n".join(f"{key}: {value}" for key, value in (lines | shape).items())


def _next_steps(source: "Source", out: Path) -> str:
    name = source.model.name
    return (
        f"wrote {out}; to train it on:\n"
        f"  cp {out}/model.yaml conf/model/{name}.yaml\n"
        f"  in params.yaml: model: {name}, tokenizer: imported, and in its overrides\n"
        f"    tokenizer.from_file={out}/tokenizer.model, "
        f"tokenizer.vocab_size={source.model.vocab_size},\n"
        f"    pretrain.start_from={out}, recipe@pretrain.dense.recipe=continue,\n"
        f"    recipe@pretrain.ternary.recipe=continue, train.context up to {source.model.context}"
    )
