"""How every figure looks and becomes SVG: one style, one colour a model, stable bytes."""

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import matplotlib
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

WIDTH_IN = 8.0
INK = "#1f2328"
MUTED = "#6b7280"

# Okabe and Ito's colours, which colour-blind eyes can tell apart; brown for the yellow that
# vanishes on white.
COLOURS = (
    "#24292f",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F4F24",
)
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "h")
DASHES = ("-", "--", "-.", ":")

STYLE = {
    "svg.fonttype": "none",
    # Model and rule names are text, never mathematics.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9ca3af",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
}


class Caption(NamedTuple):
    """What a figure is called (file stem, title) and how to read it."""

    name: str
    title: str
    reading: str


class Drawing(NamedTuple):
    """A finished figure: caption and SVG text."""

    caption: Caption
    svg: str


class Look(NamedTuple):
    """How a model is drawn, the same in every figure."""

    colour: str
    marker: str
    dashes: str


@dataclass(frozen=True)
class Palette:
    """Looks by model or run name, given out in the order of `names`."""

    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Look:
        """Return the look of `name`."""
        place = self.names.index(name)
        around, slot = divmod(place, len(COLOURS))
        return Look(COLOURS[slot], MARKERS[slot], DASHES[around % len(DASHES)])


def palette(names: Iterable[str]) -> Palette:
    """Return the palette of `names`; a name that occurs twice keeps its first place."""
    return Palette(tuple(dict.fromkeys(names)))


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw with our style alone, whatever the reader's own matplotlibrc says."""
    with style.context(["default", STYLE]):
        yield


def panels(
    num_rows: int, num_columns: int = 1, *, height_in: float, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure of equal panels, row by row; `share` gives them one y axis."""
    figure = Figure(figsize=(WIDTH_IN, height_in))
    axes = figure.subplots(num_rows, num_columns, squeeze=False, sharey=share)
    return figure, list(axes.flat)


def legend_below(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """Put one legend for all panels below them, each label once, in as many columns as fit."""
    entries: dict[str, Artist] = {}
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    # About 95 characters fit in a line; the handle and the gaps take the room of ten.
    ncols = max(1, 95 // (10 + max(map(len, entries))))
    figure.legend(list(entries.values()), list(entries), loc="outside lower left", ncols=ncols)


def label_logarithmic(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers at 1, 2 and 5 (matplotlib's own are formulas)."""
    low, high = axis.get_view_interval()
    # Over many decades 2 and 5 would only crowd the axis.
    leading = (2.0, 5.0) if high < 200 * low else ()
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if _leading(value) in leading else "")
    axis.set_tick_params(which="both", length=3.5, pad=3.5)


def finish(figure: Figure, caption: Caption) -> Drawing:
    """Title the figure and turn it into SVG that reads aloud and can share a page with others."""
    figure.suptitle(caption.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    buffer = io.StringIO()
    # Ids are hashes of this salt and the content: without it they differ on each run.
    with matplotlib.rc_context({"svg.hashsalt": caption.name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(caption, _accessible(buffer.getvalue(), caption=caption))


def _accessible(svg: str, *, caption: Caption) -> str:
    name = caption.name
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids are unique within a figure only, and the page holds all the figures.
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    # A hundredth of a point is below what any screen shows; six digits double the file.
    svg = re.sub(r' d="[^"]*"', lambda path: _rounded(path.group()), svg)
    opening, _, body = svg.partition(">")
    label = f'role="img" aria-labelledby="{name}-title {name}-desc"'
    described = (
        f'<title id="{name}-title">{escape(caption.title)}</title>'
        f'<desc id="{name}-desc">{escape(caption.reading)}</desc>'
    )
    lines = [line.rstrip() for line in body.splitlines() if line.strip()]
    return f"{opening} {label}>\n{described}\n" + "\n".join(lines) + "\n"


def _leading(value: float) -> float:
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9), 6)


def _rounded(path: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number.group()):.2f}", path)
