"""Imported models that end a text at several ids, each of which one prompt meets first."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tests.imports.making import drawn, write_huggingface
from tests.imports.making_json import END, byte_level, write_tokenizer

from trilith.cli import main
from trilith.runtime import Engine, GenerateConfig, SamplingConfig
from trilith.tokens import Tokenizer

Kind = Literal["tokenizer.json", "tokenizer.model"]
KINDS: tuple[Kind, ...] = ("tokenizer.json", "tokenizer.model")
PROMPTS = ("One day", "She saw", "a red ball", "x", "park", "to play with it")
NUM_ENDS = 3


class Case(NamedTuple):
    """A prompt, and its greedy answer up to the end that it meets."""

    prompt: str
    answer: list[int]
    text: str
    end: int


def write_folder(path: Path, kind: Kind) -> Path:
    """Write a Hugging Face folder; the mark that its tokenizer itself knows is the only end."""
    shape, weights = drawn(vocab_size=352 if kind == "tokenizer.json" else 300)
    folder = write_huggingface(path, weights, shape=shape)
    if kind == "tokenizer.json":
        (folder / "tokenizer.model").unlink()
        write_tokenizer(folder, byte_level(), eos_token=END)
    return folder


def tell(folder: Path, file: str, **values: Any) -> None:
    """Add values to a JSON file of a folder."""
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


def packed(source: Path) -> Path:
    """Import a folder and pack the checkpoint; return the file."""
    checkpoint, file = source.with_suffix(".ours"), source.with_suffix(".safetensors")
    assert main(["import", str(source), "--out", str(checkpoint)]) == 0
    assert main(["pack", str(checkpoint), "--out", str(file)]) == 0
    return file


def tokenizer_in(file: Path) -> Tokenizer:
    """Return the tokenizer of a packed file."""
    return Tokenizer.from_bytes(Engine.load(file).file.tokenizer_bytes)


def ending_cases(file: Path, *, is_chat: bool) -> list[Case]:
    """Find prompts whose free continuation meets an id that the others do not have, and where."""
    engine = Engine.load(file)
    tokenizer = Tokenizer.from_bytes(engine.file.tokenizer_bytes)
    config = GenerateConfig(16, (), SamplingConfig(0.0, None, None, 1.0, 0))
    free = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        if is_chat:
            ids = [tokenizer.user_id, *ids, tokenizer.assistant_id]
        free.append(list(engine.generate([tokenizer.bos_id, *ids], config=config)))
    marks = set(tokenizer.special_ids.values())
    cases = []
    for prompt, ids in zip(PROMPTS, free, strict=True):
        others = {token for other in free if other is not ids for token in other}
        end = next((t for t in ids[1:] if t not in others and tokenizer.piece(t)), None)
        answer = [] if end is None else ids[: ids.index(end)]
        if end is not None and marks.isdisjoint([*answer, end]):
            cases.append(Case(prompt, answer, tokenizer.decode(answer), end))
    assert len(cases) >= NUM_ENDS
    return cases[:NUM_ENDS]
