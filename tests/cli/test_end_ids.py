"""`trilith generate` and `trilith chat` stop at every id that ends a text of an imported model."""

import io
import sys
from pathlib import Path

import pytest
import torch
from tests.imports.making_ends import KINDS, Kind, ending_cases, packed, tell, write_folder
from tests.imports.making_json import END, byte_level, write_model, write_tokenizer

from trilith.cli import main
from trilith.tokens import Tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("kind", KINDS)
def test_generate_stops_at_each_of_them(tmp_path: Path, capsys: Capture, kind: Kind) -> None:
    folder = write_folder(tmp_path / "free", kind)
    cases = ending_cases(packed(folder), is_chat=False)
    several = write_folder(tmp_path / "several", kind)
    tell(several, "generation_config.json", eos_token_id=[case.end for case in cases])
    file = packed(several)
    for case in cases:
        capsys.readouterr()
        options = ["--temperature", "0", "--max-new-tokens", "30", "--prompt", case.prompt]
        assert main(["generate", str(file), *options]) == 0
        assert capsys.readouterr().out == f"{case.text}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_chat_stops_at_each_of_them(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    folder = write_folder(tmp_path / "free", kind)
    cases = ending_cases(packed(folder), is_chat=True)
    several = write_folder(tmp_path / "several", kind)
    tell(several, "config.json", eos_token_id=[case.end for case in cases])
    file = packed(several)
    for case in cases:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{case.prompt}\n"))
        assert main(["chat", str(file), "--temperature", "0", "--max-new-tokens", "30"]) == 0
        assert capsys.readouterr().out == f"{case.text}\n"


def test_generate_ends_where_transformers_does(tmp_path: Path, capsys: Capture) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `export`")
    folder = tmp_path / "small"
    write_model(folder, "Qwen2", tie_word_embeddings=True)
    write_tokenizer(folder, byte_level(), eos_token=END)
    cases = ending_cases(packed(folder), is_chat=False)
    ends = [case.end for case in cases]
    # What config.json says is not asked for.
    tell(folder, "config.json", eos_token_id=cases[0].answer[0])
    tell(folder, "generation_config.json", eos_token_id=ends, do_sample=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == ends
    tokenizer = Tokenizer.from_bytes(_imported(folder, tmp_path / "again"))
    for case in cases:
        prompt = [tokenizer.bos_id, *tokenizer.encode(case.prompt)]
        with torch.no_grad():
            theirs = model.generate(torch.tensor([prompt]), max_new_tokens=30, pad_token_id=0)
        assert theirs[0, len(prompt) :].tolist() == [*case.answer, case.end]
        capsys.readouterr()
        options = ["--temperature", "0", "--max-new-tokens", "30", "--prompt", case.prompt]
        assert main(["generate", str(tmp_path / "again.safetensors"), *options]) == 0
        assert capsys.readouterr().out == f"{case.text}\n"


def _imported(folder: Path, out: Path) -> bytes:
    assert main(["import", str(folder), "--out", str(out)]) == 0
    assert main(["pack", str(out), "--out", str(out.with_suffix(".safetensors"))]) == 0
    return (out / "tokenizer.model").read_bytes()
