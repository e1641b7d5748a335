"""The gates that look at one document, and the score of what passes.

A gate is named by the rule that a document breaks; a document goes at the first one. RULES is the
order, so the counts by rule read as a funnel.
"""

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from trilith.corpus.config import GateConfig

RULES = (
    "size",
    "encoding",
    "lines",
    "letters",
    "line_length",
    "generated",
    "licence",
    "syntax",
    "exact_duplicate",
    "near_duplicate",
)

_SPDX = re.compile(r"^[^\w\"'\n]*SPDX-License-Identifier:[ \t]*([\w.+\-() ]+)", re.I | re.M)
_SPDX_HEAD_CHARS = 2_000


class Candidate(NamedTuple):
    """A document that could be read."""

    text: str
    licence: str
    language: str


def first_failure(candidate: Candidate, gates: GateConfig) -> str | None:
    """Name the first rule that a text breaks, or None if it passes every gate on its text.

    The gates beyond the text itself (size, encoding, syntax, duplicates) run beside this one.
    """
    for rule, passes in _TEXT_GATES.items():
        if not passes(candidate, gates):
            return rule
    return None


def stated_licence(text: str) -> str | None:
    """Return the expression of an SPDX-License-Identifier line near the start, in lower case."""
    found = _SPDX.search(text[:_SPDX_HEAD_CHARS])
    return found.group(1).strip().lower() if found else None


def licence_allowed(expression: str, allowed: tuple[str, ...]) -> bool:
    """Say whether an SPDX expression leaves us at least one choice of allowed licences alone.

    `a OR b` needs one of the two, `a AND b` both. Brackets and `WITH` are not read: refused.
    """
    known = {licence.lower() for licence in allowed}
    choices = re.split(r"\s+or\s+", expression.strip().lower())
    return any(set(re.split(r"\s+and\s+", choice)) <= known for choice in choices)


def parse_python(text: str) -> ast.Module | None:
    """Parse Python source with the running Python, or return None where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def docstring_share(tree: ast.Module) -> float:
    """Score Python: definitions (the module, classes, functions) that have a docstring, 0..1."""
    documented = [ast.get_docstring(node, clean=False) is not None for node in _definitions(tree)]
    return sum(documented) / len(documented)


def distinct_line_share(text: str) -> float:
    """Score any other text: distinct lines among those that are not blank, 0..1."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return len(set(lines)) / len(lines) if lines else 0.0


def _has_right_length(candidate: Candidate, gates: GateConfig) -> bool:
    text = candidate.text
    num_lines = text.count("\n") + (text != "" and not text.endswith("\n"))
    return gates.min_lines <= num_lines <= gates.max_lines


def _has_letters(candidate: Candidate, gates: GateConfig) -> bool:
    num_letters = sum(map(str.isalpha, candidate.text))
    return num_letters >= gates.min_letter_share * len(candidate.text)


def _has_short_lines(candidate: Candidate, gates: GateConfig) -> bool:
    return max(map(len, candidate.text.split("\n"))) <= gates.max_line_length


def _is_handwritten(candidate: Candidate, gates: GateConfig) -> bool:
    lines = candidate.text.split("\n", gates.generated_head_lines)[: gates.generated_head_lines]
    head = "\n".join(lines).lower()
    return not any(marker.lower() in head for marker in gates.generated_markers)


def _is_licensed(candidate: Candidate, gates: GateConfig) -> bool:
    return licence_allowed(candidate.licence, gates.licences)


_TEXT_GATES: dict[str, Callable[[Candidate, GateConfig], bool]] = {
    "lines": _has_right_length,
    "letters": _has_letters,
    "line_length": _has_short_lines,
    "generated": _is_handwritten,
    "licence": _is_licensed,
}

_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: ast.AST) -> Iterator[_Definition]:
    # Statements alone are walked: definitions cannot hide in expressions, and those are most nodes.
    if isinstance(node, _Definition):
        yield node
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(node, name, ())
        if isinstance(inner, list):
            for child in inner:
                yield from _definitions(child)
