"""Instructions come from docstrings and paragraphs, and from nothing else."""

from trilith.evolution.instructions import (
    CONTINUE,
    DECLARE,
    DESCRIBE,
    SourceText,
    derive_instructions,
)

SOURCE = '''
def area(width: int, height=2) -> int:
    """Return the area of a rectangle. It is the product.

    Args: not part of the summary.
    """
    return width * height


def undocumented(x):
    return x


class Shape:
    async def draw(self, *args, **kwargs):
        """Draw the shape on the
        canvas it was made for."""

    def short(self):
        """Too short."""
'''


def derive(text: str, language: str = "python") -> list[tuple[str, str]]:
    found = derive_instructions([SourceText(text, language, "a.py")])
    assert all(instruction.source == "a.py" for instruction in found)
    return [(instruction.prompt, instruction.response) for instruction in found]


def test_a_documented_function_gives_both_directions() -> None:
    signature = "def area(width: int, height=2) -> int:"
    summary = "Return the area of a rectangle."
    method = "async def draw(self, *args, **kwargs):"
    drawing = "Draw the shape on the canvas it was made for."
    assert derive(SOURCE) == [
        (DESCRIBE + signature, summary),
        (DECLARE + summary, signature),
        (DESCRIBE + method, drawing),
        (DECLARE + drawing, method),
    ]


def test_the_same_instruction_comes_once() -> None:
    documents = [SourceText(SOURCE, "python", "a.py"), SourceText(SOURCE, "python", "b.py")]
    assert len(derive_instructions(documents)) == 4


def test_what_does_not_parse_gives_nothing() -> None:
    assert derive("def broken(:\n") == []
    assert derive("x = '\0'") == []


def test_prose_gives_paragraphs_that_follow_each_other() -> None:
    first = "It was a dark and stormy night; the rain\r\nfell in torrents over the town."
    second = "Except at occasional intervals, when it was checked by a violent gust of wind."
    found = derive(f"{first}\r\n\r\n{second}\r\n\r\nshort", "text")
    assert found == [(CONTINUE + first.replace("\r\n", " "), second)]


def test_where_no_line_is_blank_every_line_is_a_paragraph() -> None:
    first = "One day a girl found a needle in her room, and it was sharp."
    second = "She showed it to her mother, who was sewing a shirt."
    found = derive(f"{first}\n{second}\n", "text")
    assert found == [(CONTINUE + first, second)]
