"""`trilith info`: what a packed file holds, or how many weights a configured model has."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilith.cli.plan import plan_of, this_machine
from trilith.cli.project import compose_model, compose_plan, has_plan_sections
from trilith.cli.table import format_table, size_rows

if TYPE_CHECKING:
    from trilith.model import ModelConfig
    from trilith.packed import PackedFile, PackReport


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "info", help="describe a packed model, or count the weights of a configured one"
    )
    parser.add_argument(
        "target",
        nargs="+",
        help="a packed file; or choices from conf/, such as: model=nano model.width=256",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the description."""
    first = options.target[0]
    if "=" in first and not Path(first).exists():
        print(_describe_model(compose_model(options.target)))
        if has_plan_sections():
            print("\n" + _describe_memory(options.target))
        return 0
    if len(options.target) > 1:
        raise ValueError(f"info takes one file, got {' '.join(options.target)}")
    from trilith.packed import measure, read_packed

    file = read_packed(Path(first))
    print(_describe_file(file, measure(file)))
    return 0


def _describe_model(config: "ModelConfig") -> str:
    from trilith.model import count_parameters

    count = count_parameters(config)
    rows = [("part", "parameters", "share")]
    rows += [
        (part, f"{number:,}", f"{number / count.total:.1%}")
        for part, number in count._asdict().items()
    ]
    rows.append(("total", f"{count.total:,}", "100.0%"))
    return f"{_architecture(config)}\n\nparameters\n{format_table(rows)}"


def _describe_memory(overrides: list[str]) -> str:
    """A few sizes of the ternary twin; `trilith memory` has the rest."""
    from trilith.runtime import plan_inference
    from trilith.training.memory import plan_training

    plan = plan_of(compose_plan(overrides), {}, this_machine())
    training = plan_training(plan.training)
    # The file is the same for all, and a GPU does not hold it.
    generation = plan_inference(replace(plan.generation, kernel="torch"))
    setup = plan.training
    sizes = {
        "weights": training.weights,
        "gradients": training.gradients,
        f"{setup.optimizer} state": training.optimizer,
        f"activations of {setup.batch_size} x {setup.context} tokens": training.activations,
        "packed file": generation.file,
        f"KV cache of {plan.generation.context} tokens": generation.kv_cache,
    }
    rows = size_rows({name: [size] for name, size in sizes.items()})
    return f"memory of the ternary twin (more: trilith memory)\n{format_table(rows)}"


def _describe_file(file: "PackedFile", report: "PackReport") -> str:
    manifest = file.manifest
    bits = "float" if manifest.activation_bits is None else f"int{manifest.activation_bits}"
    special = ", ".join(f"{name}={token}" for name, token in manifest.special_ids.items())
    parts = [
        str(file.path),
        _architecture(manifest.model),
        f"projections\n{format_table(_projections(file))}\n  activations: {bits}",
        f"size\n{format_table(size_table(report))}",
        f"  {report.bits_per_weight:.3f} bits per projection weight, scales counted\n"
        f"  {report.bits_per_parameter:.3f} bits per parameter of {report.num_parameters:,}",
    ]
    if report.code_counts:
        parts.append(f"levels\n{format_table(_levels(report))}")
    parts += [
        f"tokenizer\n  sha256 {manifest.tokenizer_sha256}\n  {special or 'no special ids'}",
        "provenance\n" + _lines(manifest.provenance),
    ]
    return "\n\n".join(parts)


def _architecture(config: "ModelConfig") -> str:
    return f"model {config.name}\n" + _lines(
        {k: v for k, v in asdict(config).items() if k != "name"}
    )


def _lines(content: dict[str, Any]) -> str:
    return "\n".join(f"  {key}: {value}" for key, value in content.items()) or "  nothing"


def _projections(file: "PackedFile") -> list[tuple[str, str, str, str]]:
    """One row for each grid, codec and shape of scales that the file holds."""
    counts: dict[tuple[str, str, str], int] = {}
    for entry in file.manifest.tensors.values():
        if entry.part == "dense":
            kind = ("dense", entry.dtype, "none")
        elif entry.codes is not None:
            num_rows, num_groups = file.manifest.tensors[entry.codes.scale].shape
            per = "row" if num_rows > 1 else "tensor"
            if num_groups > 1:
                per = f"{entry.codes.shape[1] // num_groups} inputs"
            kind = (entry.codes.grid, entry.codes.codec, f"per {per}")
        else:
            continue
        counts[kind] = counts.get(kind, 0) + 1
    rows = [("grid", "codec", "scales", "tensors")]
    return rows + [(*kind, str(number)) for kind, number in counts.items()]


def size_table(report: "PackReport") -> list[tuple[str, str, str]]:
    """Rows of bytes by part that add up to the file."""
    rows = [("part", "bytes", "share")]
    rows += [
        (part, f"{size:,}", f"{size / report.file_bytes:.1%}")
        for part, size in report.bytes_by_part.items()
        if size
    ]
    return [*rows, ("file", f"{report.file_bytes:,}", "100.0%")]


def _levels(report: "PackReport") -> list[tuple[str, str, str]]:
    from trilith.quant import grid_named

    rows = [("grid", "level", "share")]
    for name, counts in report.code_counts.items():
        for level, count in zip(grid_named(name).levels, counts, strict=True):
            rows.append((name, f"{level:+.3f}", f"{count / sum(counts):.2%}"))
    return rows
