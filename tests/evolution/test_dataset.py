"""Instructions from files: three forms, every format, and one clear line for what is wrong."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trilith.evolution import (
    Instruction,
    InstructionConfig,
    Turn,
    check_files,
    read_instructions,
)

PAIRS = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(60)]
ALPACA = [
    {"instruction": "Add.", "input": "1, 2", "output": " 3"},
    {"instruction": "Greet.", "input": "", "output": "Hello"},
    {"instruction": "Sing.", "output": "La"},
]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
            {"role": "user", "content": "Again"},
            {"role": "assistant", "content": "Hum"},
        ]
    }
]


def config(*files: Path, form: str = "pair", **changes: Any) -> InstructionConfig:
    options: dict[str, Any] = {"licence": "mit", "held_out_share": 0.1}
    names = tuple(str(file) for file in files)
    return InstructionConfig("files", form=form, files=names, **options | changes)  # type: ignore[arg-type]


def write(path: Path, rows: Any) -> Path:
    """Write rows in the format that the suffix names; text as it is."""
    if isinstance(rows, str):
        path.write_text(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def everything(options: InstructionConfig) -> list[Instruction]:
    """The instructions of all splits."""
    splits = ("train", "validation", "test")
    return [i for split in splits for i in read_instructions(options, split=split).instructions]


def texts(options: InstructionConfig) -> set[tuple[str, str]]:
    return {(instruction.prompt, instruction.response) for instruction in everything(options)}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_instructions(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"pairs{suffix}", PAIRS)
    assert texts(config(path)) == {(row["prompt"], row["response"]) for row in PAIRS}


def test_an_input_follows_its_instruction_where_there_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", ALPACA)
    expected = {("Add.\n\n1, 2", " 3"), ("Greet.", "Hello"), ("Sing.", "La")}
    assert texts(config(path, form="alpaca")) == expected


def test_a_chat_keeps_its_turns_and_its_system_message_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", CHAT)
    (chat,) = everything(config(path, form="chat"))
    assert chat[:2] == ("Again", "Hum")
    assert chat.earlier == (Turn("Be short.\n\nHi", "Ho"),)
    assert chat.source == f"{path}, row 1"


def test_other_names_of_columns_and_roles_are_read(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    path = write(tmp_path / "s.json", [{"talk": said, "id": 7}])
    columns = {"messages": "talk", "role": "from", "content": "value"}
    options = config(path, form="chat", columns=columns, ignored_columns=("id",))
    assert texts(options) == {("Hi", "Ho")}


def test_a_question_is_in_one_split_whatever_is_read_beside_it(tmp_path: Path) -> None:
    first, second = PAIRS[:40], [row | {"response": "Who knows?"} for row in PAIRS[20:]]
    paths = [write(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate((first, second))]
    splits = ("train", "validation", "test")
    prompts = {
        split: {i.prompt for i in read_instructions(config(*paths), split=split).instructions}
        for split in splits
    }
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values())) == 60
    assert all(len(prompts[split]) >= 1 for split in splits)
    assert len(prompts["train"]) > 40
    alone = read_instructions(config(paths[0]), split="test").instructions
    assert {i.prompt for i in alone} <= prompts["test"]


def test_blank_and_repeated_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    blank = [{"prompt": " ", "response": "x"}, {"prompt": "x", "response": "\n"}]
    path = write(tmp_path / "p.jsonl", [*PAIRS, *PAIRS[:3], *blank])
    found = read_instructions(config(path), split="train")
    assert (found.num_blank, found.num_repeated) == (2, 3)
    assert len(everything(config(path))) == 60


def test_no_more_rows_are_read_than_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", PAIRS)
    assert len(everything(config(path, max_examples=7))) == 7


def test_texts_stay_as_they_are_written(tmp_path: Path) -> None:
    odd = [("2020-01-01", "2020-01-02T00:00:00"), ("12", "1e5"), ("a\u2028b", "\ufeff null")]
    rows = [{"prompt": prompt, "response": response} for prompt, response in odd]
    for suffix in (".json", ".jsonl", ".parquet"):
        assert texts(config(write(tmp_path / f"odd{suffix}", rows))) == set(odd)


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", PAIRS)
    assert len(everything(config(path))) == 60
    write(path, PAIRS[:5])
    assert len(everything(config(path))) == 5


def test_a_folder_of_files_is_read_as_the_hub_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", PAIRS)
    options = InstructionConfig(
        "hub", form="pair", licence="mit", name=str(folder), split="train", held_out_share=0.1
    )
    assert len(everything(options)) == 60
    with pytest.raises(ValueError, match=r"'nowhere/at-all': the data set cannot be read .* split"):
        read_instructions(
            InstructionConfig(
                "hub", form="pair", licence="mit", name="nowhere/at-all", split="train",
                held_out_share=0.1,
            ),
            split="train",
        )  # fmt: skip


GOOD = {"prompt": "a", "response": "b"}
TALK = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("form", "rows", "words"),
    [
        ("pair", [GOOD, {"prompt": "a"}], r"bad.json, row 2: field 'response' is missing"),
        ("alpaca", [{"input": "a", "output": "b"}], r"row 1: field 'instruction' is missing"),
        (
            "pair",
            [GOOD, GOOD, {"prompt": "a", "response": 3}],
            r"row 3: .* type int, expected",
        ),
        ("alpaca", [{"instruction": ["a"], "output": "b"}], r"row 1: .* type list, expected text"),
        ("pair", [GOOD, GOOD | {"mood": "sad"}], r"row 2: column 'mood' is not known .*=pair"),
        ("alpaca", [GOOD], r"row 1: column 'prompt' .* instruction, input, output"),
        ("pair", [{"prompt": "a\ud800", "response": "b"}], r"row 1: field 'prompt' holds half a"),
        ("pair", [GOOD, ["a", "b"]], r"row 2: it is of type list, expected an object with prompt"),
        ("pair", [], r"bad.json is empty: it holds no row"),
        ("pair", "", r"bad.json is empty"),
        ("pair", '{"prompt": "a", "resp', r"bad.json, line 1 cannot be read as JSON"),
        ("pair", '[{"prompt": "a", "resp', r"bad.json cannot be read as JSON"),
        ("pair", "\n" + json.dumps(GOOD) + '\n{"pr', r"bad.json, line 3 cannot be read as JSON"),
        ("pair", [{"prompt": " ", "response": "b"}], r"every one of 1 rows is blank"),
        ("chat", [{"messages": "a"}], r"row 1: field 'messages' is of type str, expected a list"),
        ("chat", [{"messages": []}], r"row 1: the messages are by nobody; expected user and"),
        ("chat", [{"messages": [TALK[0]]}], r"the messages are by user; expected"),
        ("chat", [{"messages": [TALK[1], TALK[0]]}], r"are by assistant, user; expected"),
        ("chat", [{"messages": TALK}, {"messages": ["a"]}], r"row 2, message 1: it is of type str"),
        (
            "chat",
            [{"messages": [TALK[0], {"role": "assistant"}]}],
            r"row 1, message 2: field 'content' is missing",
        ),
        (
            "chat",
            [{"messages": [{"role": "bard", "content": "a"}, TALK[1]]}],
            r"row 1, message 1: role 'bard' is not known; expected system, user",
        ),
    ],
)
def test_what_does_not_fit_is_named_by_file_row_and_field(
    tmp_path: Path, form: str, rows: Any, words: str
) -> None:
    good = write(tmp_path / "good.json", CHAT if form == "chat" else [ALPACA[0]])
    options = config(write(tmp_path / "bad.json", rows), form=form)
    with pytest.raises(ValueError, match=words):
        read_instructions(options, split="train")
    if form != "pair":
        with pytest.raises(ValueError, match=words):
            check_files(config(good, tmp_path / "bad.json", form=form))


def test_parquet_that_is_none_and_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no.parquet cannot be read"):
        everything(config(write(tmp_path / "no.parquet", "PAR1 and more")))
    with pytest.raises(FileNotFoundError, match=r"absent.json is not a file"):
        check_files(config(tmp_path / "absent.json"))


def test_an_ignored_column_must_exist(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", PAIRS)
    with pytest.raises(ValueError, match=r"names 'id', which is no column .* prompt, response"):
        everything(config(path, ignored_columns=("id",)))


def test_the_licence_is_said_before_anything_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "p.jsonl", "")
    terms = "CC BY-NC 4.0 (no commercial use)"
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="empty"):
        check_files(config(path, licence=terms))
    assert [record.getMessage() for record in caplog.records] == [
        f"instructions of {path}: licence {terms}"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"form": "poem"}, r"form='poem' is not known; choose alpaca, chat or pair"),
        ({"kind": "web"}, r"kind='web' is not known; choose corpus, files or hub"),
        ({"kind": "corpus"}, r"files=.*|form=.* has no effect with kind=corpus"),
        ({"name": "a/b"}, r"name='a/b' has no effect with kind=files"),
        ({"files": ()}, r"files is not set, but kind=files needs it"),
        ({"files": ("a.csv",)}, r"'a.csv' ends in none of .json, .jsonl, .parquet"),
        ({"licence": None}, r"licence is not set"),
        ({"held_out_share": 0.5}, r"held_out_share=0.5 must lie between 0 and 0.5"),
        ({"max_examples": 0}, r"max_examples=0 must be at least 1"),
        ({"columns": {"answer": "b"}}, r"'answer', which is no field of form=pair; it has prompt"),
        ({"ignored_columns": ("prompt",)}, r"names 'prompt', which form=pair reads"),
    ],
)
def test_an_option_that_cannot_be_is_named(changes: dict[str, Any], words: str) -> None:
    options: dict[str, Any] = {
        "kind": "files",
        "form": "pair",
        "licence": "mit",
        "files": ("a.json",),
        "held_out_share": 0.05,
    }
    with pytest.raises(ValueError, match=rf"^instructions\.?.*({words})"):
        InstructionConfig(**options | changes)
