"""What running a packed model imports, in a fresh interpreter: its users pay for all of it."""

import subprocess
import sys
from pathlib import Path

from tests.toy_packed import pack_toy

# Of training, tables, plots and text alone. tokenizers and sentencepiece come with a tokenizer.
FOREIGN = (
    *("pyarrow", "lightning", "datasets", "wandb", "matplotlib", "sklearn", "pandas", "hydra"),
    *("sentencepiece", "tokenizers", "torch._dynamo", "torch._meta_registrations"),
)
PROGRAM = """
import sys
from pathlib import Path
import torch
before = set(sys.modules)
from trilith.runtime import Engine
if sys.argv[1:]:
    engine = Engine.load(Path(sys.argv[1]))
    cache = engine.new_cache(batch_size=1, capacity=4)
    engine.prefill(torch.tensor([[1, 2, 3]]), cache=cache)
    engine.decode_one_token(torch.tensor([1]), cache=cache)
print(*sorted(set(sys.modules) - before))
"""


def _imported(*arguments: str) -> set[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_runtime_imports_nothing_that_running_does_not_need() -> None:
    imported = _imported()
    assert "trilith.runtime.engine" in imported
    assert not imported & set(FOREIGN)


def test_loading_prefill_and_decoding_import_nothing_of_it_either(tmp_path: Path) -> None:
    imported = _imported(str(pack_toy(tmp_path / "toy.safetensors", context=64)))
    assert not imported & set(FOREIGN)
