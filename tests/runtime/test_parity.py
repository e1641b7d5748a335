"""A thousand greedy tokens of a packed model, for every codec, instruction set and thread count.

The model is wide enough for several threads to share its products and its attention. Native runs
are equal to the bit. The model that was packed adds its floats in another order, which now and
then turns a rounding to int8; keys and values carry that on, up to some percent of the logits. So
both are held to the same model in float64.
"""

import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from trilith.kernels import NativeProduct, available_isas, native_path
from trilith.model import ModelConfig, Transformer, build_model
from trilith.packed import Attachments, PackConfig, TokenizerParts, write_packed
from trilith.quant import QuantConfig, scale
from trilith.runtime import Engine

pytestmark = pytest.mark.skipif(not available_isas(), reason="no C compiler")

SHAPE = ModelConfig("toy", 1500, 512, 2, 8, 4, "swiglu", 1152, 1100, 1e4, 1e-5, True, True, True)
NUM_TOKENS, NUM_SCALAR_TOKENS = 1000, 40


class Kind(NamedTuple):
    grid: str
    codec: str
    # In base 3 only beyond so many weights.
    cached_weights: int = native_path.CACHED_WEIGHTS


KINDS = {
    "base 3": Kind("ternary", "base3"),
    "base 3 in memory": Kind("ternary", "base3", 0),
    "2 bits": Kind("ternary", "bits2"),
    "3 bits": Kind("prime7", "bits3"),
    "planes": Kind("planes", "planes"),
    "1 bit": Kind("sign", "bits1"),
}


class Packed(NamedTuple):
    model: Transformer
    path: Path


@pytest.fixture(scope="module", params=KINDS)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    kind = KINDS[request.param]
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # Any scale will do, and the best one takes long to find.
        patch.setattr(scale, "_START_MULTIPLES", (1.6,))
        model = build_model(SHAPE, QuantConfig(kind.grid, "least_squares", "row", None, 8)).eval()  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("packed") / "toy.safetensors"
    write_packed(
        model,
        path=path,
        config=PackConfig(kind.codec, "f32"),
        attachments=Attachments(TokenizerParts(b"tokenizer", {}), {}),
        proof_tokens=torch.arange(12).view(2, 6),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_path, "CACHED_WEIGHTS", kind.cached_weights)
        patch.setattr(native_path, "BASE3_ISAS", available_isas())
        yield Packed(model, path)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Written(NamedTuple):
    tokens: list[int]
    logits_TV: Tensor


def _write(path: Path, kernels: str, *, threads: int, num_tokens: int) -> Written:
    """Continue one token greedily."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILITH_KERNELS", kernels)
        engine = Engine.load(path)
    torch.set_num_threads(threads)
    cache = engine.new_cache(batch_size=1, capacity=num_tokens)
    tokens, logits = [5], []
    for _ in range(num_tokens):
        logits.append(engine.decode_one_token(torch.tensor(tokens[-1:]), cache=cache)[0])
        tokens.append(int(logits[-1].argmax()))
    return Written(tokens, torch.stack(logits))


@pytest.mark.slow
def test_every_kernel_and_thread_count_writes_the_same(packed: Packed) -> None:
    best = available_isas()[-1]
    expected = _write(packed.path, best, threads=1, num_tokens=NUM_TOKENS)
    runs = [(isa, threads, NUM_TOKENS) for isa in available_isas()[1:] for threads in (1, 2)]
    runs += [("scalar", 2, NUM_SCALAR_TOKENS), (best, 7, NUM_SCALAR_TOKENS)]
    for kernels, threads, num_tokens in runs:
        found = _write(packed.path, kernels, threads=threads, num_tokens=num_tokens)
        assert found.tokens == expected.tokens[: num_tokens + 1], (kernels, threads)
        assert torch.equal(found.logits_TV, expected.logits_TV[:num_tokens]), (kernels, threads)


@pytest.mark.slow
@torch.inference_mode()
def test_they_are_as_true_to_the_model_that_was_packed_as_its_own_floats(packed: Packed) -> None:
    found = _write(packed.path, "auto", threads=2, num_tokens=NUM_TOKENS)
    tokens_BT = torch.tensor([found.tokens[:-1]])
    in_float32_TV = packed.model(tokens_BT)[0]
    in_float64_TV = deepcopy(packed.model).double()(tokens_BT)[0]
    errors_T, its_own_T = (_errors(x, in_float64_TV) for x in (found.logits_TV, in_float32_TV))
    # Before anything is rounded another way there are float32's own errors alone.
    assert errors_T[:20].median() < 1e-5
    # The step at which a rounding first turns is chance, and decides the mean.
    assert errors_T.mean() < 4 * its_own_T.mean()
    most_T = torch.maximum(errors_T, its_own_T) * in_float64_TV.abs().amax(-1)
    best_two_T2 = in_float64_TV.topk(2).values
    is_clear_T = best_two_T2[:, 0] - best_two_T2[:, 1] > 2 * most_T
    assert is_clear_T.float().mean() > 0.8
    chosen_T, its_own_T = found.logits_TV.argmax(-1), in_float32_TV.argmax(-1)
    assert torch.equal(chosen_T[is_clear_T], its_own_T[is_clear_T])


def _errors(found_TV: Tensor, expected_TV: Tensor) -> Tensor:
    """Largest error of each step, of its largest logit."""
    return (found_TV - expected_TV).abs().amax(-1) / expected_TV.abs().amax(-1)


_COUNTS_THREADS = """
import sys, torch
from pathlib import Path
from trilith.runtime import Engine
torch.set_num_threads(1)
engine = Engine.load(Path(sys.argv[1]))
cache = engine.new_cache(batch_size=1, capacity=1)
tasks = Path("/proc/self/task")
before = len(list(tasks.iterdir()))
torch.set_num_threads(2)
engine.decode_one_token(torch.tensor([5]), cache=cache)
print(len(list(tasks.iterdir())) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted on Linux")
@pytest.mark.parametrize("packed", ["2 bits"], indirect=True)
def test_a_second_thread_shares_the_work_of_a_token(packed: Packed) -> None:
    command = [sys.executable, "-c", _COUNTS_THREADS, str(packed.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "1", done.stdout + done.stderr


def test_codes_lie_in_memory_as_they_should(packed: Packed) -> None:
    products = [m for m in Engine.load(packed.path).model.modules() if isinstance(m, NativeProduct)]
    manifest = Engine.load(packed.path).file.manifest
    codecs = {entry.codes.codec for entry in manifest.tensors.values() if entry.codes}
    layouts = {product.layout for product in products}
    expected = {"base3": {"bits2"}, "bits2": {"bits2"}, "bits1": {"bits2"}}
    if native_path.CACHED_WEIGHTS == 0:
        expected["base3"] = {"base3"}
    assert layouts == expected.get(*codecs, {"bits4"})
