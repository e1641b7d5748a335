"""`trilith memory`: what training and generation with a model need, and whether a device has it."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trilith.cli.plan import Plan, Target, named_file, read_file_plan, read_plan
from trilith.cli.table import format_table, size_rows

if TYPE_CHECKING:
    from trilith.model import CacheBits
    from trilith.runtime import InferenceSetup
    from trilith.training.memory import TrainingSetup

# Bits of a number in the cache, all of which are planned up to those that are asked for.
_CACHE_BITS: "tuple[CacheBits, ...]" = (32, 16, 8, 4)


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "memory", help="plan the memory of a configured model, or of a packed file"
    )
    parser.add_argument(
        "choices",
        nargs="+",
        metavar="[FILE] KEY=VALUE",
        help="a packed file, if one is meant, then: context, batch, prompt, running and kept "
        "(caches of a server), cache_bits, window, sinks, layers (held or streamed), device (a "
        "GPU's name or cpu); without a file variant (ternary or dense), and choices from conf/, "
        "such as: model=7b quant=prime7 train=gpu pack=bits2",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print both plans, of a packed file that of generation."""
    path = named_file(options.choices)
    if path is None:
        print(_describe(read_plan(options.choices)))
    else:
        setup, target = read_file_plan(path, options.choices[1:])
        print(f"{path}, on {target.name}\n\n{_describe_generation(setup, target)}")
    return 0


def _describe(plan: Plan) -> str:
    from trilith.model import count_parameters

    model, quant = plan.training.model, plan.training.quant
    weights = "dense" if quant is None else quant.grid
    title = f"model {model.name}: {count_parameters(model).total:,} parameters, {weights}"
    if model.context > plan.trained_context:
        title += (
            f"\n  conf/ says model.context={plan.trained_context} and the runtime refuses more: "
            f"train with model.context={model.context}"
        )
    parts = [
        title,
        _describe_training(plan.training, plan.target),
        _describe_generation(plan.generation, plan.target),
    ]
    return "\n\n".join(parts)


def _describe_training(setup: "TrainingSetup", target: Target) -> str:
    from trilith.training.memory import plan_training

    parts = plan_training(setup)._asdict() | {"overhead": target.overhead_bytes}
    columns = {name.replace("_", " "): [size] for name, size in parts.items()}
    total = sum(parts.values())
    title = (
        f"training: {setup.batch_size} x {setup.context:,} tokens at once, {setup.precision}, "
        f"{setup.optimizer}, on one device, not compiled"
    )
    lines = [title, format_table(size_rows(columns, totals=[total])), _verdict(total, target)]
    return "\n".join(lines + (_training_help(setup, target) if total > target.memory_bytes else []))


def _training_help(setup: "TrainingSetup", target: Target) -> list[str]:
    """One line for each change that needs less, and one for all of them."""
    from trilith.training.memory import plan_training

    changes: dict[str, dict[str, Any]] = {
        "train.precision=bf16-mixed": {"precision": "bf16-mixed"},
        "batch=1": {"batch_size": 1},
        "optimizer=muon": {"optimizer": "muon"},
        "train.acceleration.checkpoint_activations=true": {"kept": "block inputs"},
    }
    before = plan_training(setup).total
    helping = {
        name: change
        for name, change in changes.items()
        if plan_training(replace(setup, **change)).total < before
    }
    together = {key: value for change in helping.values() for key, value in change.items()}
    if len(helping) > 1:
        helping["all of these"] = together
    return [
        f"  with {name}:{_verdict(_training_total(replace(setup, **change), target), target)}"
        for name, change in helping.items()
    ]


def _training_total(setup: "TrainingSetup", target: Target) -> int:
    from trilith.training.memory import plan_training

    return plan_training(setup).total + target.overhead_bytes


def _describe_generation(setup: "InferenceSetup", target: Target) -> str:
    from trilith.runtime import plan_inference

    planned = _CACHE_BITS if setup.kernel != "triton" else (setup.cache.bits,)
    wanted = [bits for bits in planned if bits <= setup.cache.bits]
    widths = [replace(setup, cache=replace(setup.cache, bits=bits)) for bits in wanted]
    plans = [plan_inference(width) for width in widths]
    totals = [plan.total + target.overhead_bytes for plan in plans]
    columns = {
        "packed file": [plan.file for plan in plans],
        "unpacked": [plan.unpacked for plan in plans],
        "KV cache": [plan.kv_cache for plan in plans],
        "kept caches": [plan.kept for plan in plans],
        "activations": [max(plan.prefill, plan.decode) for plan in plans],
        "overhead": [target.overhead_bytes] * len(plans),
    }
    if not setup.kept:
        del columns["kept caches"]
    if setup.kernel == "triton":
        columns = {"weights": columns.pop("unpacked")} | columns
        del columns["packed file"]
    rows = [
        ["keys and values of", *(f"{width.cache.bits} bits" for width in widths)],
        *size_rows(columns, totals=totals),
        ["fits", *("yes" if total <= target.memory_bytes else "no" for total in totals)],
        ["longest context", *(_longest(width, target) for width in widths)],
    ]
    return "\n".join([_title(setup), format_table(rows), *_remarks(setup)])


def _title(setup: "InferenceSetup") -> str:
    from trilith.runtime import PREFILL_TOKENS

    caches = f", in each of {setup.running} caches" if setup.running > 1 else ""
    parts = "as a whole" if setup.kernel == "triton" else f"in parts of {PREFILL_TOKENS}"
    return (
        f"generation: {setup.batch_size} x {setup.context:,} tokens{caches}, {setup.prompt:,} of "
        f"them a prompt, which runs {parts}"
    )


def _longest(setup: "InferenceSetup", target: Target) -> str:
    from trilith.runtime import PREFILL_TOKENS, longest_context

    # A part of a prompt is enough: the others take the same room.
    setup = replace(setup, prompt=min(setup.prompt, PREFILL_TOKENS + 1))
    longest = longest_context(setup, memory_bytes=target.memory_bytes - target.overhead_bytes)
    return "any" if longest and setup.cache.window is not None else f"{longest:,}"


def _remarks(setup: "InferenceSetup") -> list[str]:
    from trilith.runtime import PREFILL_TOKENS

    if setup.kernel != "triton":
        return ["  tokenizer and manifest of the file come on top"]
    return [
        "  on a GPU keys and values, embedding and head are float32, and the file is not kept; "
        "activations are estimated, not measured",
        f"  longest context: with a prompt of {PREFILL_TOKENS + 1} tokens or fewer",
    ]


def _verdict(total: int, target: Target) -> str:
    size, room = f"{total / 1e9:,.2f} GB", f"{target.memory_bytes / 1e9:,.2f} GB of {target.name}"
    if total <= target.memory_bytes:
        return f"  {size} fits the {room}"
    return f"  {size} does not fit the {room}"
