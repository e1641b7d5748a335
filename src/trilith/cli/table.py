"""Tables for the terminal: first column left, all others right; sizes in one unit a table."""

from collections.abc import Mapping, Sequence


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells of equal number."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def size_rows(parts: Mapping[str, Sequence[int]], *, totals: Sequence[int] = ()) -> list[list[str]]:
    """Rows of bytes by part, with totals if given, in MB or, for large ones, GB (10^6, 10^9)."""
    largest = max(totals or [size for sizes in parts.values() for size in sizes])
    unit, factor = ("GB", 10**9) if largest >= 10**9 else ("MB", 10**6)
    rows = [
        [name, *(f"{size / factor:,.2f} {unit}" for size in sizes)] for name, sizes in parts.items()
    ]
    return [*rows, ["total", *(f"{t / factor:,.2f} {unit}" for t in totals)]] if totals else rows
