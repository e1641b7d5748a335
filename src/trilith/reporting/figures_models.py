"""Figures of what comes in and what comes out: curation, quality against size, packed bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trilith.reporting.drawing import (
    COLOURS,
    INK,
    MUTED,
    Caption,
    Drawing,
    Palette,
    finish,
    label_logarithmic,
    legend_below,
    panels,
)
from trilith.reporting.inputs import Figures, Histogram, by_prefix

MB = 1e6
KEPT = "#0072B2"
REJECTED = "#E69F00"


def draw_funnel(curate: Figures) -> Drawing:
    """Draw how many documents are left after each rule, and how many each rejected."""
    rejected = by_prefix(curate, "rejected")
    left, remaining = curate["documents_in"], []
    for count in rejected.values():
        left -= count
        remaining.append(left)
    labels = ["documents in", *rejected, "documents out"]
    kept = [curate["documents_in"], *remaining, curate["documents_out"]]
    lost = [0, *rejected.values(), 0]
    figure, (axes,) = panels(1, height_in=1.3 + 0.32 * len(labels))
    rows = np.arange(len(labels))
    axes.barh(rows, kept, color=KEPT, height=0.68, label="kept")
    axes.barh(rows, lost, left=kept, color=REJECTED, height=0.68, label="rejected here")
    for row, (count, loss) in enumerate(zip(kept, lost, strict=True)):
        text = f"{count:,.0f}" + (f"  (-{loss:,.0f})" if loss else "")
        axes.annotate(text, (count + loss, row), xytext=(5, 0), textcoords="offset points",
                      va="center", fontsize=8.5)  # fmt: skip
    axes.set_yticks(rows, labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(*kept, 1) * 1.22)
    axes.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.set(xlabel="documents (count)", ylabel="rule, in order")
    legend_below(figure, [axes])
    gap = left - curate["documents_out"]
    note = f" {abs(gap):,.0f} documents left or came in outside the rules shown." if gap else ""
    return finish(
        figure,
        Caption(
            name="curation_funnel",
            title="Curation funnel",
            reading="Rules apply from top to bottom. Blue is what each one let through, orange "
            f"what it rejected.{note}",
        ),
    )


def draw_quality_against_size(
    models: Mapping[str, Mapping[str, Any]], *, looks: Palette
) -> Drawing:
    """Draw bits per byte over file size, one labelled point a model."""
    figure, (axes,) = panels(1, height_in=4.4)
    sizes = {name: figures["file_bytes"] / MB for name, figures in models.items()}
    quality = {name: figures["bits_per_byte"] for name, figures in models.items()}
    for name in models:
        look = looks[name]
        axes.scatter(sizes[name], quality[name], color=look.colour, marker=look.marker, s=60,
                     edgecolors="white", linewidths=0.8, zorder=3)  # fmt: skip
    axes.set_xscale("log")
    low, high = min(sizes.values()), max(sizes.values())
    axes.set_xlim(low / 1.5, high * 1.5)
    span = (max(quality.values()) - min(quality.values())) or 0.1
    axes.set_ylim(min(quality.values()) - 0.15 * span, max(quality.values()) + 0.15 * span)
    label_logarithmic(axes.xaxis)
    axes.set(xlabel="file size (MB, logarithmic)", ylabel="bits per byte of test text")
    _label_points(axes, sizes, quality=quality, middle=math.sqrt(low * high))
    return finish(
        figure,
        Caption(
            name="quality_against_size",
            title="Quality against size",
            reading="Down and left is better: fewer bits to write down a byte of unseen text, and "
            "a smaller file. A step to the left is a ratio, not a difference.",
        ),
    )


def draw_size_breakdown(parts: Mapping[str, Figures]) -> Drawing | None:
    """Draw the bytes of each packed model by part; None without parts."""
    if not parts:
        return None
    names = list(dict.fromkeys(part for model in parts.values() for part in model))
    figure, (axes,) = panels(1, height_in=1.5 + 0.36 * len(parts))
    rows = np.arange(len(parts))
    start = np.zeros(len(parts))
    for place, name in enumerate(names):
        sizes = np.array([model.get(name, 0) / MB for model in parts.values()])
        axes.barh(rows, sizes, left=start, height=0.66, label=name, edgecolor="white",
                  linewidth=0.6, color=COLOURS[(place + 1) % len(COLOURS)],
                  hatch="" if place < len(COLOURS) else "///")  # fmt: skip
        start += sizes
    for row, total in enumerate(start):
        axes.annotate(f"{total:,.2f}", (total, row), xytext=(5, 0), textcoords="offset points",
                      va="center", fontsize=8.5)  # fmt: skip
    axes.set_yticks(rows, list(parts))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(start.max(), 1e-9) * 1.12)
    axes.set_xlabel("size (MB)")
    legend_below(figure, [axes])
    return finish(
        figure,
        Caption(
            name="size_breakdown",
            title="Where the bytes go",
            reading="One bar a packed file, split into its parts; the number is the sum in MB "
            "(10⁶ bytes). Codes are the quantized weights; what is neither codes "
            "nor scales is not on the grid.",
        ),
    )


def draw_weight_histograms(
    histograms: Mapping[str, Histogram], *, looks: Palette
) -> Drawing | None:
    """Draw the distribution of each model's weights; None without histograms."""
    if not histograms:
        return None
    figure, grid = _small_multiples(list(histograms))
    for (name, histogram), axes in zip(histograms.items(), grid, strict=False):
        axes.stairs(_percent(histogram), histogram.positions, fill=True, alpha=0.85,
                    color=looks[name].colour)  # fmt: skip
        axes.set_xlabel("weight value", fontsize=8.5)
        axes.set_ylabel("weights (%)", fontsize=8.5)
    return finish(
        figure,
        Caption(
            name="weight_histograms",
            title="Weight values",
            reading="How the values of the weights are spread, in per cent of all. A tall bar "
            "at the very edge means that values were cut off.",
        ),
    )


def draw_code_histograms(histograms: Mapping[str, Histogram], *, looks: Palette) -> Drawing | None:
    """Draw how often each level of the grid is used; None when no model is quantized."""
    if not histograms:
        return None
    figure, grid = _small_multiples(list(histograms))
    for (name, histogram), axes in zip(histograms.items(), grid, strict=False):
        shares = _percent(histogram)
        rows = np.arange(len(shares))
        axes.bar(rows, shares, color=looks[name].colour, width=0.72)
        for row, share in zip(rows, shares, strict=True):
            axes.annotate(f"{share:.1f}", (row, share), xytext=(0, 2), ha="center",
                          textcoords="offset points", fontsize=7.5)  # fmt: skip
        axes.set_xticks(rows, [f"{level:g}" for level in histogram.positions])
        axes.grid(axis="x", visible=False)
        axes.set_ylim(0, max(shares.max(), 1e-9) * 1.15)
        axes.set_xlabel("level", fontsize=8.5)
        axes.set_ylabel("codes (%)", fontsize=8.5)
    return finish(
        figure,
        Caption(
            name="code_histograms",
            title="Codes in the packed file",
            reading="How often each level of the grid is used, in per cent. A level that is hardly "
            "used is capacity that the file pays for and the model does not use.",
        ),
    )


def _small_multiples(names: Sequence[str]) -> tuple[Any, list[Axes]]:
    num_columns = min(3, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure, grid = panels(num_rows, num_columns, height_in=0.6 + 2.0 * num_rows)
    for axes in grid[len(names) :]:
        axes.remove()
    for name, axes in zip(names, grid, strict=False):
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
    return figure, grid


def _percent(histogram: Histogram) -> np.ndarray:
    counts = np.array(histogram.counts, dtype=float)
    return 100 * counts / max(counts.sum(), 1.0)


def _label_points(axes: Axes, sizes: Figures, *, quality: Figures, middle: float) -> None:
    low, high = axes.get_ylim()
    # Two labels on one side need about a twentieth of the height between them.
    needed = (high - low) / 20
    for on_left in (True, False):
        names = [name for name in sizes if (sizes[name] <= middle) == on_left]
        floor = -math.inf
        for name in sorted(names, key=lambda name: (quality[name], name)):
            height = max(quality[name], floor)
            floor = height + needed
            axes.annotate(
                name,
                (sizes[name], quality[name]),
                xytext=(12 if on_left else -12, (height - quality[name]) / needed * 13),
                textcoords="offset points",
                ha="left" if on_left else "right",
                va="center",
                fontsize=9,
                color=INK,
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkB": 4},
            )
