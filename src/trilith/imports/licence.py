"""What a file beside the weights says about their licence: a note for people, not legal advice."""

import re
from pathlib import Path

_FIELD = re.compile(r"^licen[cs]e:\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_MAX_BYTES = 100_000


def licence_beside(weights: Path) -> str | None:
    """Return `file: what it says` from a model card's header or a licence file; None without."""
    folder = weights if weights.is_dir() else weights.parent
    for card in sorted(folder.glob("*.md")):
        head = _text(card).split("\n---", 1)[0]
        found = _FIELD.search(head) if head.startswith("---") else None
        if found:
            return f"{card.name}: {found.group(1)}"
    for path in sorted([*folder.glob("LICENSE*"), *folder.glob("LICENCE*")]):
        lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
        if lines:
            return f"{path.name}: {lines[0]}"
    return None


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_BYTES).decode("utf-8", "replace")
