"""Each gate refuses what it names and lets its near misses pass."""

import ast
import inspect
from dataclasses import replace

import pytest

from trilith.corpus import GateConfig
from trilith.corpus.gates import (
    Candidate,
    distinct_line_share,
    docstring_share,
    first_failure,
    licence_allowed,
    parse_python,
    stated_licence,
)

GOOD = "".join(f"a line of words, number {number}\n" for number in range(10))


def failure(text: str, gates: GateConfig, *, licence: str = "mit") -> str | None:
    return first_failure(Candidate(text, licence, "text"), gates)


def test_a_plain_text_passes(gates: GateConfig) -> None:
    assert failure(GOOD, gates) is None


def test_the_number_of_lines_counts_a_last_line_without_an_end(gates: GateConfig) -> None:
    nine = GOOD.split("\n", 1)[1]
    assert failure(nine, gates) == "lines"
    assert failure(nine + "the tenth", gates) is None
    assert failure(GOOD, replace(gates, max_lines=10)) is None
    assert failure(GOOD + "x", replace(gates, max_lines=10)) == "lines"
    assert failure("", replace(gates, min_lines=1)) == "lines"


def test_a_quarter_of_the_characters_must_be_letters_of_any_script(gates: GateConfig) -> None:
    digits = "123,456\n" * 30
    assert failure(digits, gates) == "letters"
    assert failure("字字12345\n" * 30, gates) is None
    exactly = "a123" * 5 + "\n" * 10
    assert failure(exactly, replace(gates, min_letter_share=5 / 30)) is None
    assert failure(exactly, replace(gates, min_letter_share=5.1 / 30)) == "letters"


def test_a_line_is_too_long_from_one_character_over_the_limit(gates: GateConfig) -> None:
    assert failure(GOOD + "x" * 1000, gates) is None
    assert failure(GOOD + "x" * 1001, gates) == "line_length"


def test_a_generated_marker_counts_near_the_start_alone(gates: GateConfig) -> None:
    assert failure("# DO NOT EDIT: made by a tool\n" + GOOD, gates) == "generated"
    assert failure("\n" * 9 + "# @generated\n" + GOOD, gates) == "generated"
    assert failure("\n" * 10 + "# @generated\n" + GOOD, gates) is None
    assert failure("# The report is generated here\n" + GOOD, gates) is None


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("gpl-3.0-only", False),
        ("mit-0", False),
        ("", False),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND PSF-2.0", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT AND PSF-2.0", True),
        ("PSF-2.0 WITH some-exception", False),
        ("(MIT OR PSF-2.0)", False),
    ],
)
def test_a_licence_expression_must_leave_an_allowed_choice(expression: str, allowed: bool) -> None:
    assert licence_allowed(expression, ("mit", "PSF-2.0")) is allowed


def test_the_licence_gate_reads_the_allow_list(gates: GateConfig) -> None:
    assert failure(GOOD, gates, licence="gpl-3.0-only") == "licence"
    assert failure(GOOD, replace(gates, licences=("GPL-3.0-only",)), licence="gpl-3.0-only") is None


def test_a_file_states_its_own_licence_in_a_comment_near_the_start() -> None:
    assert stated_licence("# SPDX-License-Identifier: GPL-2.0-only\n") == "gpl-2.0-only"
    assert stated_licence("/* SPDX-License-Identifier: MIT OR Apache-2.0 */\n") == (
        "mit or apache-2.0"
    )
    assert stated_licence("x = 'SPDX-License-Identifier: MIT'\n") is None
    assert stated_licence("'SPDX-License-Identifier: MIT'\n") is None
    assert stated_licence("# about SPDX-License-Identifier lines\n") is None
    assert stated_licence("\n" * 3000 + "# SPDX-License-Identifier: MIT\n") is None


@pytest.mark.parametrize("text", ["def f(:\n", "print 'two'\n", "a\0b\n", "(" * 5000])
def test_what_is_not_python_does_not_parse(text: str) -> None:
    assert parse_python(text) is None


def test_an_odd_escape_still_parses_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert parse_python("pattern = '\\d'\n") is not None
    assert not recwarn.list


def test_the_docstring_share_counts_definitions_at_every_depth() -> None:
    tree = parse_python(
        '"""Module."""\n'
        "if True:\n"
        "    class A:\n"
        '        """Class."""\n'
        "        def f(self):\n"
        "            try:\n"
        "                pass\n"
        "            except ValueError:\n"
        "                async def inner():\n"
        '                    """Inner."""\n'
        "            match self:\n"
        "                case 1:\n"
        "                    def g(): pass\n"
    )
    assert tree is not None
    assert docstring_share(tree) == 3 / 5
    assert docstring_share(ast.parse("x = 1\n")) == 0


def test_the_docstring_share_finds_the_definitions_that_a_full_walk_finds() -> None:
    tree = parse_python(inspect.getsource(ast))
    assert tree is not None
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    documented = [node for node in nodes if ast.get_docstring(node)]
    assert docstring_share(tree) == pytest.approx(len(documented) / len(nodes))


def test_other_text_scores_by_lines_that_do_not_repeat() -> None:
    assert distinct_line_share("a\nb\n\na\n  a \n") == 2 / 4
    assert distinct_line_share("\n\n") == 0
