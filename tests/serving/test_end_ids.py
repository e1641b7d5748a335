"""The server stops at every id that ends a text of an imported model."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.imports.making_ends import KINDS, Kind, ending_cases, packed, tell, write_folder
from tests.serving.running import running

from trilith.runtime import Engine
from trilith.tokens import Tokenizer

GREEDY: dict[str, Any] = {"model": "toy", "temperature": 0, "max_tokens": 30}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_an_answer_ends_at_each_of_them(tmp_path: Path, kind: Kind, route: str) -> None:
    folder = write_folder(tmp_path / "free", kind)
    cases = ending_cases(packed(folder), is_chat=route.startswith("chat"))
    several = write_folder(tmp_path / "several", kind)
    tell(several, "generation_config.json", eos_token_id=[case.end for case in cases])
    engine = Engine.load(packed(several))
    tokenizer = Tokenizer.from_bytes(engine.file.tokenizer_bytes)
    with running(engine, tokenizer, context=64) as server:
        for case in cases:
            asked: dict[str, Any] = {"prompt": case.prompt}
            if route.startswith("chat"):
                asked = {"messages": [{"role": "user", "content": case.prompt}]}
            body = server.post(route, GREEDY | asked).json()
            (choice,) = body["choices"]
            assert choice["finish_reason"] == "stop"
            assert choice.get("text", choice.get("message", {}).get("content")) == case.text
            assert body["usage"]["completion_tokens"] == len(case.answer)
