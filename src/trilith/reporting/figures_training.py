"""Figures over optimizer steps: loss, learning rate, gradients, quantization, speed."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from trilith.files import FLIP_INTERVAL
from trilith.reporting.curves import Run, latest_pass, smooth, thin
from trilith.reporting.drawing import (
    DASHES,
    MUTED,
    Caption,
    Drawing,
    Palette,
    finish,
    label_logarithmic,
    legend_below,
    panels,
)
from trilith.reporting.inputs import Figures

STEP_LABEL = "optimizer step"
# Marker and height in the panel, as a share: a spike may lie far outside the view.
EVENT_MARKS = {"spike": ("X", 0.89), "rollback": ("v", 0.83), "stop": ("s", 0.77)}


class Curve(NamedTuple):
    """A column of steps.csv and how its panel is labelled."""

    column: str
    label: str
    scale: str = "linear"


def draw_pretraining_loss(
    runs: Sequence[Run], *, floors: Mapping[str, Figures], looks: Palette
) -> Drawing:
    """Draw the loss of all runs, whole on the left, the second half enlarged on the right."""
    figure, (whole, late) = panels(1, 2, height_in=4.2)
    for axes in (whole, late):
        for run in runs:
            _loss_lines(axes, run, looks=looks)
        axes.set(xlabel=STEP_LABEL, ylabel="loss (nats per token)")
    for name, floor in floors.items():
        whole.axhline(floor["loss_nats"], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        whole.annotate(
            f"{name} floor",
            (1, floor["loss_nats"]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=MUTED,
            fontsize=8.5,
        )
    whole.set_ylim(*_loss_limits(runs, also=[floor["loss_nats"] for floor in floors.values()]))
    whole.set_title("whole run")
    half = max(run.steps["step"].max() for run in runs) / 2
    late.set_xlim(left=half)
    late.set_ylim(*_loss_limits(runs, since=half))
    late.set_title("second half, enlarged")
    legend_below(figure, [whole])
    return finish(
        figure,
        Caption(
            name="pretraining_loss",
            title="Pretraining loss",
            reading="Lower is better. Light lines are the loss of each batch, dark lines its "
            "moving average, open points the loss on validation text. Dashed lines are what "
            "counting single tokens (unigram) or pairs (bigram) reaches on the test text without "
            "a network. Near the upper edge crosses are faults, triangles rollbacks to an "
            "earlier checkpoint, squares stops; dotted verticals are cuts of the learning rate.",
        ),
    )


def draw_evolution_loss(runs: Sequence[Run], *, looks: Palette) -> Drawing | None:
    """Draw the loss of each evolution run, its phases as bands; None without runs."""
    if not runs:
        return None
    figure, all_axes = panels(len(runs), height_in=1.2 + 2.1 * len(runs))
    for axes, run in zip(all_axes, runs, strict=True):
        _loss_lines(axes, run, looks=looks)
        axes.set_ylim(*_loss_limits([run], headroom=0.16))
        axes.set_title(run.name)
        axes.set_ylabel("loss (nats per token)")
        axes.margins(x=0.01)
        for place, phase in enumerate(run.phases):
            if place % 2 == 0:
                axes.axvspan(phase.first_step, phase.last_step, color="#f3f4f6", zorder=0)
            middle = (phase.first_step + phase.last_step) / 2
            axes.text(
                middle, 0.97, phase.name, transform=axes.get_xaxis_transform(),
                ha="center", va="top", color=MUTED, fontsize=8.5,
            )  # fmt: skip
    all_axes[-1].set_xlabel(STEP_LABEL)
    return finish(
        figure,
        Caption(
            name="evolution_loss",
            title="Evolution loss by phase",
            reading="One panel a run, lower is better. Bands are the phases of the run. Light "
            "line: each batch; dark line: moving average; open points: validation text. Phases "
            "may differ in data and objective, so compare losses within a phase. Crosses, "
            "triangles and squares are spikes, rollbacks and stops, dotted lines cuts of the "
            "learning rate.",
        ),
    )


def draw_optimization(runs: Sequence[Run], *, stage: str, looks: Palette) -> Drawing:
    """Draw learning rate and gradient norm of the runs of a stage."""
    caption = Caption(
        name=f"{stage}_optimization",
        title=f"{stage.capitalize()}: learning rate and gradient norm",
        reading="Left: the schedule as it was run; a sudden drop that does not recover is a cut "
        "after a rollback. Right: flat or slowly falling is healthy; a rise over many steps warns "
        "of divergence before the loss shows it.",
    )
    curves = (Curve("lr", "learning rate"), Curve("grad_norm", "gradient norm", "log"))
    return _draw_curves(runs, curves=curves, caption=caption, looks=looks)


def draw_divergence(runs: Sequence[Run], *, looks: Palette) -> Drawing | None:
    """Draw how far the predictions of each run are from its teacher's; None without a teacher."""
    taught = [run for run in runs if np.isfinite(run.steps["kl_nats"]).any()]
    if not taught:
        return None
    caption = Caption(
        name="evolution_divergence",
        title="Evolution: divergence from the teacher",
        reading="KL divergence of the dense teacher's predictions on the text of each batch, lower "
        "is better. It starts at what the grid costs after the fit; where it stays, more steps "
        "will not bring the teacher's predictions back.",
    )
    curves = (Curve("kl_nats", "KL (nats per token)", "log"),)
    return _draw_curves(taught, curves=curves, caption=caption, looks=looks)


def draw_quantization(runs: Sequence[Run], *, stage: str, looks: Palette) -> Drawing | None:
    """Draw flip rate and zero share of the runs of a stage; None when no run is quantized."""
    quantized = [
        run
        for run in runs
        if np.isfinite(run.steps["zero_share"]).any() or np.isfinite(run.steps["flip_rate"]).any()
    ]
    if not quantized:
        return None
    caption = Caption(
        name=f"{stage}_quantization",
        title=f"{stage.capitalize()}: codes in motion",
        reading="Left: the share of codes that change from one step to the next; it should fall "
        "as training settles. Right: the share of codes that are zero; about a third is usual for "
        "ternary, a drift to 0 or 1 means that the scales no longer fit.",
    )
    curves = (
        Curve("flip_rate", f"codes that flip (share in {FLIP_INTERVAL} steps)", "log"),
        Curve("zero_share", "zero codes (share)"),
    )
    return _draw_curves(quantized, curves=curves, caption=caption, looks=looks)


def draw_speed(runs: Sequence[Run], *, stage: str, looks: Palette) -> Drawing:
    """Draw tokens/s and MFU of the runs of a stage."""
    peaks = [
        f"{run.name} {run.metrics['hardware/peak_flops'] / 1e12:.4g}"
        for run in runs
        if "hardware/peak_flops" in run.metrics
    ]
    assumed = f" Assumed peak in TFLOP/s: {', '.join(peaks)}." if peaks else ""
    caption = Caption(
        name=f"{stage}_speed",
        title=f"{stage.capitalize()}: speed",
        reading="Higher is better. MFU is the share of the hardware's peak arithmetic that the "
        f"model itself used.{assumed}",
    )
    curves = (Curve("tokens_per_s", "tokens per second"), Curve("mfu", "MFU (0 to 1)"))
    return _draw_curves(runs, curves=curves, caption=caption, looks=looks)


def _draw_curves(
    runs: Sequence[Run], *, curves: Sequence[Curve], caption: Caption, looks: Palette
) -> Drawing:
    figure, all_axes = panels(1, len(curves), height_in=3.4)
    for axes, curve in zip(all_axes, curves, strict=True):
        for run in runs:
            _curve_lines(axes, run, curve=curve, looks=looks)
        positive = any((np.asarray(line.get_ydata()) > 0).any() for line in axes.lines)
        axes.set(xlabel=STEP_LABEL, ylabel=curve.label)
        axes.margins(x=0.01)
        if curve.scale == "log" and positive:
            axes.set_yscale("log")
            label_logarithmic(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
    legend_below(figure, all_axes)
    return finish(figure, caption)


def _curve_lines(axes: Axes, run: Run, *, curve: Curve, looks: Palette) -> None:
    steps, values = latest_pass(run, column=curve.column)
    if not np.isfinite(values).any():
        return
    look = looks[run.name]
    dashes = look.dashes
    if curve.column == "lr":
        # Set, not measured: nothing to smooth, and equal schedules lie on each other.
        dashes = DASHES[looks.names.index(run.name) % len(DASHES)]
    else:
        rows = thin(values)
        axes.plot(steps[rows], values[rows], color=look.colour, alpha=0.22, linewidth=0.8)
        values = smooth(values)
    rows = thin(values)
    axes.plot(steps[rows], values[rows], color=look.colour, linestyle=dashes, label=run.name)


def _loss_lines(axes: Axes, run: Run, *, looks: Palette) -> None:
    look = looks[run.name]
    raw = run.steps["loss_nats"]
    rows = thin(raw)
    axes.plot(run.steps["step"][rows], raw[rows], color=look.colour, alpha=0.22, linewidth=0.8)
    steps, kept = latest_pass(run, column="loss_nats")
    average = smooth(kept)
    rows = thin(average)
    axes.plot(steps[rows], average[rows], color=look.colour, linestyle=look.dashes, label=run.name)
    axes.plot(
        run.validation["step"],
        run.validation["loss_nats"],
        linestyle="none",
        marker=look.marker,
        markersize=4.5,
        markerfacecolor="white",
        markeredgecolor=look.colour,
        label=f"{run.name}, validation",
    )
    _mark_events(axes, run, colour=look.colour)


def _mark_events(axes: Axes, run: Run, *, colour: str) -> None:
    for event in run.events:
        label = event.kind.replace("_", " ")
        if event.kind == "lr_cut":
            axes.axvline(event.step, color=colour, linestyle=":", linewidth=1, label=label)
            continue
        marker, height = EVENT_MARKS[event.kind]
        axes.plot(
            event.step, height, transform=axes.get_xaxis_transform(), linestyle="none",
            marker=marker, markersize=7, color=colour, markeredgecolor="white", label=label,
            zorder=5,
        )  # fmt: skip


def _loss_limits(
    runs: Sequence[Run],
    *,
    also: Sequence[float] = (),
    since: float = -np.inf,
    headroom: float = 0.03,
) -> tuple[float, float]:
    losses = [np.asarray(also, dtype=float)]
    for run in runs:
        for curve in (run.steps, run.validation):
            losses.append(curve["loss_nats"][curve["step"] >= since])
    together = np.concatenate(losses)
    together = together[np.isfinite(together)]
    if not together.size:
        return 0.0, 1.0
    # One wild batch must not flatten everything else; the floors always stay in view.
    low, high = np.percentile(together, [0.1, 99.7])
    high = max([high, *also])
    room = (high - low) or 1.0
    return low - 0.05 * room, high + headroom * room
