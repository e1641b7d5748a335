"""Text that a model wrote, made safe to show: nothing in it may act on the page or its reader."""

import re

# Control and bidirectional characters reorder or hide text; lone surrogates are no UTF-8 at all.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Write out the characters that act rather than show, as `\\u202e`; keep tab and newline."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def fenced(text: str) -> str:
    """Return a Markdown code block around `text` that no run of backticks within can close."""
    text = visible(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def markdown_cell(text: str) -> str:
    """Escape `text` for one line of Markdown, a table cell included."""
    line = " ".join(visible(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", line)
