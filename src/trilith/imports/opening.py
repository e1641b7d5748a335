"""Which kind of checkpoint lies at a path, told by what is there."""

from pathlib import Path

from trilith.files import read_json
from trilith.imports.gguf_file import open_gguf
from trilith.imports.huggingface import open_huggingface
from trilith.imports.llama2c import open_llama2c
from trilith.imports.own import open_checkpoint, open_packed
from trilith.imports.source import Source


def open_source(path: Path, *, tokenizer: Path | None = None) -> Source:
    """Open a checkpoint of any kind that is known.

    Args:
        path: a folder of Hugging Face or of Trilith, a packed `.safetensors`, a `.gguf`, a
            llama2.c `.bin`.
        tokenizer: where to take the tokenizer from, if not from beside the weights.

    Raises:
        FileNotFoundError: nothing is there, or a part of it is missing.
        ValueError: it is damaged, or nothing that our model can hold exactly.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder or file with a model")
    if tokenizer is not None and not tokenizer.is_file():
        raise FileNotFoundError(f"{tokenizer} does not exist; give a tokenizer file")
    kind = _kind(path)
    if kind == "packed" and tokenizer is not None:
        raise ValueError(f"{path} knows its own tokenizer; leave out --tokenizer")
    if kind == "checkpoint":
        return open_checkpoint(path, tokenizer=tokenizer)
    if kind == "packed":
        return open_packed(path)
    if kind == "huggingface":
        return open_huggingface(path, tokenizer=tokenizer)
    if kind == "gguf":
        return open_gguf(path, tokenizer=tokenizer)
    return open_llama2c(path, tokenizer=tokenizer)


def _kind(path: Path) -> str:
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"{path} holds no config.json, so it is no Hugging Face or Trilith folder; of "
                "llama2.c give the weight file itself"
            )
        config = read_json(path / "config.json", made_by="its own project")
        is_own = isinstance(config, dict) and "format_version" in config
        return "checkpoint" if is_own else "huggingface"
    return {".safetensors": "packed", ".gguf": "gguf"}.get(path.suffix, "llama2c")
