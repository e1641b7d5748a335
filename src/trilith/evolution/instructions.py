"""Instructions derived from the corpus itself: docstrings and signatures, or the next paragraph.

Python documents give two kinds: say what a signature does, and write the signature for a
description. Other texts give one: go on after a paragraph.
"""

import ast
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

_MIN_SUMMARY_CHARS = 20
_MAX_SUMMARY_CHARS = 200
_MAX_SIGNATURE_CHARS = 160
_MIN_PARAGRAPH_CHARS = 40
_MAX_PARAGRAPH_CHARS = 400

DESCRIBE = "Describe this function.\n\n"
DECLARE = "Write the signature of this function.\n\n"
CONTINUE = "Go on with this text.\n\n"


class Turn(NamedTuple):
    """One question and its answer."""

    prompt: str
    response: str


class Instruction(NamedTuple):
    """A question and the answer that is learned, after earlier turns of the same conversation.

    `source` says where it comes from: the path of its document, or a file and its row.
    """

    prompt: str
    response: str
    source: str
    earlier: tuple[Turn, ...] = ()


class SourceText(NamedTuple):
    """What instructions are made of: a document's text, language and path."""

    text: str
    language: str
    path: str


def derive_instructions(documents: Iterable[SourceText]) -> list[Instruction]:
    """Return the distinct instructions of the documents, in their order."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for document in documents:
        derive = _from_python if document.language == "python" else _from_prose
        for prompt, response in derive(document.text):
            if (prompt, response) not in seen:
                seen.add((prompt, response))
                kept.append(Instruction(prompt, response, document.path))
    return kept


def _from_python(text: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        summary = _summary(ast.get_docstring(node))
        signature = _signature(node)
        if summary and len(signature) <= _MAX_SIGNATURE_CHARS:
            yield DESCRIBE + signature, summary
            yield DECLARE + summary, signature


def _summary(docstring: str | None) -> str:
    """First sentence or line block of a docstring, or "" if it is too short or too long."""
    paragraph = " ".join((docstring or "").split("\n\n")[0].split())
    sentence = paragraph.split(". ")[0]
    summary = sentence if sentence.endswith(".") else sentence + "."
    return summary if _MIN_SUMMARY_CHARS <= len(summary) <= _MAX_SUMMARY_CHARS else ""


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{keyword} {node.name}({ast.unparse(node.args)}){returns}:"


def _from_prose(text: str) -> Iterator[tuple[str, str]]:
    text = text.replace("\r\n", "\n")
    # Where no line is blank, every line is a paragraph.
    parts = text.split("\n\n") if "\n\n" in text.strip() else text.split("\n")
    paragraphs = [" ".join(part.split()) for part in parts]
    for first, second in pairwise(paragraphs):
        lengths = (len(first), len(second))
        if all(_MIN_PARAGRAPH_CHARS <= n <= _MAX_PARAGRAPH_CHARS for n in lengths):
            yield CONTINUE + first, second
