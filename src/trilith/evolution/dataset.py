"""Instructions from files or the hub: every row is checked before use."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trilith.corpus import SplitConfig, split_of
from trilith.corpus.documents import text_id
from trilith.evolution.config import (
    MESSAGE_FIELDS,
    OPTIONAL_FIELDS,
    InstructionConfig,
)
from trilith.evolution.instructions import Instruction, Turn

log = logging.getLogger(__name__)

# What data sets call the two who speak.
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


class InstructionSet(NamedTuple):
    """The instructions of a split, and how many rows of the whole data gave none."""

    instructions: list[Instruction]
    num_blank: int  # a prompt or a response without a visible character
    num_repeated: int  # seen before, word for word


class _Table(NamedTuple):
    """Rows of one file or data set, not checked yet, and its name for errors."""

    name: str
    rows: Iterator[Any]


def read_instructions(config: InstructionConfig, *, split: str) -> InstructionSet:
    """Read and check all rows, and return those of a split.

    A row's split depends on its first prompt alone, so one question is never on both sides.

    Args:
        config: of kind `files` or `hub`.
        split: train, validation or test.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file or data set cannot be read, is empty, or has a row that does not fit the
            form; the text names file, row and field.
    """
    share = config.held_out_share
    assert share is not None
    shares = SplitConfig(train=1 - 2 * share, validation=share, test=share)
    kept, seen = [], set()
    num_blank = num_repeated = 0
    for table in _tables(config):
        for instruction in _instructions(table, config):
            turns = (*instruction.earlier, Turn(instruction.prompt, instruction.response))
            if not all(text.strip() for turn in turns for text in turn):
                num_blank += 1
            elif turns in seen:
                num_repeated += 1
            else:
                seen.add(turns)
                if split_of(text_id(turns[0].prompt), shares) == split:
                    kept.append(instruction)
    if not seen:
        raise ValueError(f"{_origin(config)}: every one of {num_blank} rows is blank")
    return InstructionSet(kept, num_blank, num_repeated)


def check_files(config: InstructionConfig) -> None:
    """Say the licence, and read local files once to check them; the hub is left alone.

    Raises:
        FileNotFoundError, ValueError: as `read_instructions`.
    """
    announce_licence(config)
    if config.kind == "files":
        read_instructions(config, split="train")


def announce_licence(config: InstructionConfig) -> None:
    """Say under which licence the instructions stand; those of the corpus have its own."""
    if config.kind != "corpus":
        log.warning("instructions of %s: licence %s", _origin(config), config.licence)


def _origin(config: InstructionConfig) -> str:
    return config.name if config.name is not None else ", ".join(config.files)


def _tables(config: InstructionConfig) -> Iterator[_Table]:
    if config.kind == "hub":
        yield _Table(f"{config.name} {config.split}", _hub_rows(config))
    for name in config.files:
        if not Path(name).is_file():
            raise FileNotFoundError(f"instructions.files: {name} is not a file; give its path")
        if not Path(name).stat().st_size:
            raise ValueError(f"{name} is empty: it holds no row")
        read = _parquet_rows if name.endswith(".parquet") else _json_rows
        yield _Table(name, read(Path(name)))


def _hub_rows(config: InstructionConfig) -> Iterator[Any]:
    # Imported here: it costs a second or more that derived instructions need not pay.
    import datasets

    try:
        yield from datasets.load_dataset(
            config.name, config.subset, revision=config.revision, split=config.split
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"instructions.name={config.name!r}: the data set cannot be read "
            f"({type(error).__name__}: {error}); check name, subset, revision and split, and the "
            "network"
        ) from error


def _parquet_rows(path: Path) -> Iterator[Any]:
    import datasets

    try:
        # Streamed: else a copy stays in the cache, and an edited file may be served from it.
        yield from datasets.Dataset.from_parquet(str(path.resolve()), streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{path} cannot be read as parquet ({type(error).__name__}: {error})"
        ) from error


def _json_rows(path: Path) -> Iterator[Any]:
    """Rows of a JSON array, or of JSON lines.

    Not by `datasets`: it turns numbers into text, and texts that look like dates into dates.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            yield from json.loads(text)
            return
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json_line(line, f"{path}, line {number}")


def _json_line(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{place} cannot be read as JSON ({error}); a file is an array of rows, or has a row a "
            "line"
        ) from error


def _instructions(table: _Table, config: InstructionConfig) -> Iterator[Instruction]:
    known = {config.column(name) for name in config.fields} | set(config.ignored_columns)
    columns: set[str] = set()
    number = 0
    for number, row in enumerate(table.rows, 1):
        if config.max_examples is not None and number > config.max_examples:
            break
        place = f"{table.name}, row {number}"
        if not isinstance(row, dict):
            raise ValueError(
                f"{place}: it is {_kind(row)}, expected an object with {', '.join(config.fields)}"
            )
        # In parquet, rows that lack a column which others have come with None.
        unknown = [name for name, value in row.items() if name not in known and value is not None]
        if unknown:
            raise ValueError(
                f"{place}: column {unknown[0]!r} is not known to instructions.form={config.form}, "
                f"which reads {', '.join(config.column(name) for name in config.fields)}; name it "
                "in instructions.ignored_columns to leave it out, or in instructions.columns"
            )
        columns |= set(row)
        yield _from_row(row, config, place)
    if not number:
        raise ValueError(f"{table.name} is empty: it holds no row")
    for name in config.ignored_columns:
        if name not in columns:
            raise ValueError(
                f"instructions.ignored_columns names {name!r}, which is no column of "
                f"{table.name}; it has {', '.join(sorted(columns))}"
            )


def _from_row(row: dict[str, Any], config: InstructionConfig, place: str) -> Instruction:
    if config.form == "chat":
        turns = _turns(row, config, place)
        return Instruction(turns[-1].prompt, turns[-1].response, place, tuple(turns[:-1]))
    texts = [_text(row, name, config, place) for name in config.fields]
    prompt = "\n\n".join(texts[:1] + [text for text in texts[1:-1] if text])
    return Instruction(prompt, texts[-1], place)


def _turns(row: dict[str, Any], config: InstructionConfig, place: str) -> list[Turn]:
    """Return the turns of a chat; a system message goes in front of the first prompt."""
    column = config.column("messages")
    messages = row.get(column)
    if messages is None:
        raise ValueError(f"{place}: field {column!r} is missing")
    if not isinstance(messages, list):
        raise ValueError(f"{place}: field {column!r} is {_kind(messages)}, expected a list")
    spoken = [
        _message(message, config, f"{place}, message {number}")
        for number, message in enumerate(messages, 1)
    ]
    system = ""
    if spoken and spoken[0][0] == "system":
        system = spoken.pop(0)[1]
    roles = [role for role, _ in spoken]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(
            f"{place}: the messages are by {', '.join(roles) or 'nobody'}; expected user and "
            "assistant in turn, after at most one system message, the last by the assistant"
        )
    texts = [text for _, text in spoken]
    if system:
        texts[0] = f"{system}\n\n{texts[0]}"
    return [Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]


def _message(message: Any, config: InstructionConfig, place: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise ValueError(f"{place}: it is {_kind(message)}, expected role and content")
    role, content = (_text(message, name, config, place) for name in MESSAGE_FIELDS)
    if role not in _ROLES:
        raise ValueError(f"{place}: role {role!r} is not known; expected {', '.join(_ROLES)}")
    return _ROLES[role], content


def _text(row: dict[str, Any], name: str, config: InstructionConfig, place: str) -> str:
    column = config.column(name)
    value = row.get(column)
    if value is None:
        if name in OPTIONAL_FIELDS:
            return ""
        raise ValueError(f"{place}: field {column!r} is missing")
    if not isinstance(value, str):
        raise ValueError(f"{place}: field {column!r} is {_kind(value)}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{place}: field {column!r} holds half a character (a lone surrogate); mend the text"
        ) from None
    return value


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"
