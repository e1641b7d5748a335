"""The tables of the report, as text cells: one source for the page and for Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from trilith.files import FLIP_INTERVAL, STEP_PARTS
from trilith.reporting.curves import Run, typical
from trilith.reporting.findings import Models, Verdict, bytes_ratio, reference_of
from trilith.reporting.inputs import Evaluation, Figures, Inputs, by_prefix, packed_parts

ABSENT = "-"
MAX_EVENTS = 60
# Metrics of the evolution that there is one of for each projection.
_BY_PROJECTION = ("/fit/output_error/", "/descent/move_step/")

TARGET_TEXT = {
    "perplexity_ratio": "perplexity, x its dense reference",
    "bytes_ratio": "file size, x the dense file",
}
# Key in pretrain's metrics, row label with its unit, factor that turns one into the other.
TRAINING_ROWS: tuple[tuple[str, str, float], ...] = (
    ("train/loss_nats", "training loss (nats per token)", 1),
    ("validation/loss_nats", "validation loss (nats per token)", 1),
    ("train/num_tokens", "tokens seen (count)", 1),
    ("train/num_steps", "optimizer steps (count)", 1),
    ("train/last_step", "last step (count)", 1),
    ("train/result_step", "step of the resulting weights (count)", 1),
    ("train/result_tokens", "tokens they have seen (count)", 1),
    ("model/num_parameters", "parameters (count)", 1),
    ("train/tokens_per_s", "speed (tokens/s)", 1),
    ("train/mfu", "MFU (0 to 1)", 1),
    ("hardware/peak_flops", "assumed peak (TFLOP/s)", 1e-12),
    ("stability/num_spikes", "faults caught (count)", 1),
    ("stability/num_not_finite", "- not finite (count)", 1),
    ("stability/num_loss", "- in the loss (count)", 1),
    ("stability/num_grad_norm", "- in the gradient (count)", 1),
    ("stability/num_update", "- in the size of the update (count)", 1),
    ("stability/num_foreign_change", "- weights changed from outside (count)", 1),
    ("stability/num_flip_burst", "- too many codes flipped (count)", 1),
    ("stability/num_zero_drift", "- drift of the zero share (count)", 1),
    ("stability/num_scale_jump", "- a scale jumped (count)", 1),
    ("stability/num_rollbacks", "rollbacks (count)", 1),
    ("stability/num_stops", "stops after too many rollbacks (count)", 1),
    ("quant/zero_share", "zero codes (share)", 1),
    ("quant/flip_rate", f"codes that flip (share in {FLIP_INTERVAL} steps)", 1),
    ("wall_s", "wall time (s)", 1),
)


class Column(NamedTuple):
    """A column's header, with its unit, and what it holds."""

    header: str
    kind: Literal["text", "number", "verdict"] = "number"


class Table(NamedTuple):
    """A table ready to print."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def number(value: Any, *, digits: int | None = None) -> str:
    """Write a number with thousands separators; four significant digits unless `digits` decimals.

    None becomes a dash, text stays as it is.
    """
    if value is None:
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if digits is not None:
        return f"{value:,.{digits}f}"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def target_table(verdicts: Sequence[Verdict]) -> Table:
    """Return the targets beside what was measured."""
    return Table(
        title="Targets",
        columns=(
            Column("Model", "text"),
            Column("Figure", "text"),
            Column("Measured (x)"),
            Column("At most (x)"),
            Column("Outcome", "verdict"),
        ),
        rows=tuple(
            (
                target.model,
                TARGET_TEXT[target.figure],
                number(measured, digits=4),
                number(target.at_most, digits=2),
                outcome,
            )
            for target, measured, outcome in verdicts
        ),
    )


def quality_table(evaluation: Evaluation) -> Table:
    """Return models and floors against the figures of quality."""
    columns = (
        ("loss_nats", "Loss (nats/token)", 3),
        ("perplexity", "Perplexity", 2),
        ("bits_per_byte", "Bits per byte", 3),
        ("perplexity_ratio", "Perplexity (x reference)", 3),
        ("top1_agreement", "Top-1 agreement (0 to 1)", 3),
        ("kl_nats", "KL (nats/token)", 3),
        ("answer_loss_nats", "Answer loss (nats/token)", 3),
    )
    rows = []
    for name, figures in evaluation.models.items():
        cells = [number(figures.get(key), digits=digits) for key, _, digits in columns]
        reference = reference_of(evaluation.models, model=name)
        rows.append((name, *cells, ABSENT if reference == name else reference))
    for name, figures in evaluation.floors.items():
        cells = [number(figures.get(key), digits=digits) for key, _, digits in columns]
        rows.append((f"{name} floor", *cells, ABSENT))
    return Table(
        title="Quality on test text",
        columns=(
            Column("Model", "text"),
            *(Column(header) for _, header, _ in columns),
            Column("Reference", "text"),
        ),
        rows=tuple(rows),
        note="Lower is better, but for agreement. The ratio is against the "
        "reference, a dense model that saw as many tokens; agreement and KL are against the dense "
        "twin. Perplexities compare only within one tokenizer; bits per byte compare across "
        "tokenizers.",
    )


def size_table(models: Models, *, run: Mapping[str, Any]) -> Table:
    """Return models against the figures of size and speed."""
    rows = tuple(
        (
            name,
            number(figures["file_bytes"] / 1e6, digits=2),
            number(bytes_ratio(models, model=name), digits=3),
            number(figures.get("bits_per_weight"), digits=2),
            number(figures.get("prefill_tokens_per_s")),
            number(figures.get("decode_tokens_per_s")),
            number(figures.get("num_tokens_seen")),
        )
        for name, figures in models.items()
    )
    headers = (
        "File (MB)", "File (x dense)", "Bits per weight", "Prefill (tokens/s)",
        "Decode (tokens/s)", "Trained on (tokens)",
    )  # fmt: skip
    setting = ", ".join(
        f"{text} {number(run[key])}"
        for key, text in (
            ("device", "device"),
            ("threads", "threads"),
            ("prompt_tokens", "prompt tokens"),
            ("decode_tokens", "decoded tokens"),
        )
        if run.get(key) is not None
    )
    return Table(
        title="Size and speed",
        columns=(Column("Model", "text"), *(Column(header) for header in headers)),
        rows=rows,
        note="MB is 10⁶ bytes; bits per weight count the scales. "
        f"Speed: {setting or ABSENT}; models on a grid run native kernels where there are any, "
        "dense ones decode on such, in bfloat16, and run prompts on torch.",
    )


def split_table(tokenize: Figures) -> Table:
    """Return documents, bytes and tokens of each split."""
    splits = list(by_prefix(tokenize, "tokens"))
    return Table(
        title="Splits",
        columns=(
            Column("Split", "text"),
            Column("Documents"),
            Column("Text (MB)"),
            Column("Tokens"),
            Column("Bytes per token"),
        ),
        rows=tuple(
            (
                split,
                number(tokenize.get(f"documents/{split}")),
                number(_scaled(tokenize.get(f"bytes/{split}"), factor=1e-6), digits=2),
                number(tokenize.get(f"tokens/{split}")),
                number(tokenize.get(f"bytes_per_token/{split}"), digits=3),
            )
            for split in splits
        ),
        note=f"Vocabulary: {number(tokenize['vocab_size'])} tokens.",
    )


def training_table(runs: Sequence[Run]) -> Table:
    """Return the final figures of each run, one column a run; unknown keys come last, as named."""
    known = {key for key, _, _ in TRAINING_ROWS}
    others = dict.fromkeys(key for run in runs for key in run.metrics if key not in known)
    labels = [*TRAINING_ROWS, *((key, key, 1.0) for key in others)]
    return Table(
        title="Final figures",
        columns=(Column("Figure (unit)", "text"), *(Column(run.name) for run in runs)),
        rows=tuple(
            (label, *(number(_scaled(run.metrics.get(key), factor=factor)) for run in runs))
            for key, label, factor in labels
            if any(key in run.metrics for run in runs)
        ),
    )


def step_table(runs: Sequence[Run], *, stage_runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return what a step of each run costs: time by part, speed, use of the hardware, memory.

    Args:
        runs: the runs of a stage.
        stage_runs: the run.json of each run's stage, by run name, for the peak that MFU assumes.
    """
    part_headers = (f"{part.removesuffix('_s').capitalize()} (ms)" for part in STEP_PARTS)
    headers = ("Step (ms)", *part_headers, "Rest (ms)", "Tokens/s", "MFU (0 to 1)", "Memory (MB)")
    peaks: dict[str, list[str]] = {}
    for run in runs:
        peaks.setdefault(str(stage_runs[run.name].get("peak", ABSENT)), []).append(run.name)
    named = "; ".join(f"{peak} ({', '.join(names)})" for peak, names in peaks.items())
    return Table(
        title="Time and memory of a step",
        columns=(Column("Run", "text"), *(Column(header) for header in headers)),
        rows=tuple((run.name, *_step_cells(run)) for run in runs),
        note="Medians over all optimizer steps; a part is summed over the micro-batches of a step, "
        "the rest lies between the parts. Memory is the highest: tensors on a GPU, else the whole "
        f"process. Peak for MFU: {named}.",
    )


def _step_cells(run: Run) -> list[str]:
    steps = run.steps
    parts = [steps[column] for column in STEP_PARTS]
    rest = steps["step_s"] - sum(parts)
    times = [typical(values) for values in (steps["step_s"], *parts, rest)]
    return [
        *(number(_scaled(time_s, factor=1000), digits=2) for time_s in times),
        number(typical(steps["tokens_per_s"])),
        number(typical(steps["mfu"]), digits=3),
        number(float(steps["memory_bytes"].max()) / 1e6, digits=1),
    ]


def event_table(runs: Sequence[Run]) -> Table | None:
    """Return spikes, rollbacks and the like; None when nothing happened."""
    rows = [
        (run.name, number(event.step), event.kind.replace("_", " "), event.detail)
        for run in runs
        for event in run.events
    ]
    if not rows:
        return None
    more = len(rows) - MAX_EVENTS
    return Table(
        title="Events",
        columns=(
            Column("Run", "text"),
            Column("Step"),
            Column("Event", "text"),
            Column("Detail", "text"),
        ),
        rows=tuple(rows[:MAX_EVENTS]),
        note=f"{more} more are in the events.csv files." if more > 0 else "",
    )


def evolve_table(evolve: Mapping[str, Any]) -> Table | None:
    """Return the evolution's own figures as named; None without any."""
    if not evolve:
        return None
    return Table(
        title="Figures of the evolution",
        columns=(Column("Figure (unit at the end of the name)", "text"), Column("Value")),
        # Figures of every single projection would bury the rest; metrics.json has them.
        rows=tuple(
            (key, number(value))
            for key, value in evolve.items()
            if not any(part in key for part in _BY_PROJECTION)
        ),
    )


def pack_table(pack: Figures) -> Table | None:
    """Return the bytes of each packed file by part; None when pack names no parts."""
    models = packed_parts(pack)
    if not models:
        return None
    parts = list(dict.fromkeys(part for sizes in models.values() for part in sizes))
    return Table(
        title="Packed files",
        columns=(
            Column("Model", "text"),
            *(Column(f"{part} (MB)") for part in parts),
            Column("File (MB)"),
            Column("Bits per weight"),
        ),
        rows=tuple(
            (
                model,
                *(number(_scaled(sizes.get(part), factor=1e-6), digits=3) for part in parts),
                number(_scaled(pack.get(f"{model}/file_bytes"), factor=1e-6), digits=3),
                number(pack.get(f"{model}/bits_per_weight"), digits=3),
            )
            for model, sizes in models.items()
        ),
    )


def environment_table(run: Mapping[str, Any]) -> Table | None:
    """Return where and with what the evaluation ran; None when it did not say."""
    if not run:
        return None
    rows = []
    for key, value in run.items():
        if isinstance(value, Mapping):
            rows += [(f"{key}: {name}", str(part)) for name, part in value.items()]
        else:
            # A seed is a name, not a quantity: no separators.
            rows.append((key.replace("_", " "), str(value) if key == "seed" else number(value)))
    return Table(
        title="Environment of the evaluation",
        columns=(Column("What", "text"), Column("Value", "text")),
        rows=tuple(rows),
    )


def stage_table(inputs: Inputs) -> Table | None:
    """Return wall time and device by stage; None when no stage left a run.json."""
    runs = inputs.stage_runs
    if not runs:
        return None
    rows = [
        (
            stage,
            number(run.get("wall_s"), digits=1),
            str(run.get("device") or ABSENT),
            number(run.get("threads")),
            str(run.get("seed", ABSENT)),
        )
        for stage, run in runs.items()
    ]
    total = sum(run["wall_s"] for run in runs.values() if run.get("wall_s") is not None)
    return Table(
        title="Wall time by stage",
        columns=(
            Column("Stage", "text"),
            Column("Wall time (s)"),
            Column("Device", "text"),
            Column("Threads"),
            Column("Seed"),
        ),
        rows=(*rows, ("all", number(total, digits=1), "", "", "")),
    )


def _scaled(value: float | None, *, factor: float) -> float | None:
    return None if value is None else value * factor
