"""The plan of a packed model against its file, its tensors and what generating allocates."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.memory_peak import peak_bytes, storage_bytes
from tests.model.test_zoo import shape

from trilith.kernels import available_isas, chosen_isa, native_path
from trilith.model import CacheConfig, ModelConfig, StaticCache, build_model
from trilith.packed import (
    DENSE,
    Attachments,
    PackConfig,
    TokenizerParts,
    build_packed_model,
    read_packed,
    write_packed,
)
from trilith.quant import QuantConfig
from trilith.runtime import (
    Engine,
    GenerateConfig,
    InferenceSetup,
    KeptCaches,
    SamplingConfig,
    file_bytes,
    longest_context,
    plan_inference,
)

TERNARY = QuantConfig("ternary", "absmean", "tensor", None, 8)
PRIME = QuantConfig("prime7", "least_squares", "group", 32, 8)
WEIGHTS_ALONE = QuantConfig("ternary", "absmean", "row", None, None)
SMALLEST = PackConfig("smallest", "int8")
TOY = ModelConfig("toy", 301, 96, 2, 6, 2, "relu2", 160, 64, 1e4, 1e-5, False, False, False)
BATCH = 2
Kind = tuple[ModelConfig, QuantConfig | None, PackConfig]
KINDS: list[Kind] = [
    (shape("nano", 2048), TERNARY, SMALLEST),
    (TOY, PRIME, SMALLEST),
    (shape("micro", 2048), None, DENSE),
    (TOY, TERNARY, PackConfig("bits2", "bf16")),
    (TOY, TERNARY, PackConfig("smallest", "int3", "int4", 32)),
    (TOY, WEIGHTS_ALONE, SMALLEST),
    # So few words that decoding is not all head.
    (replace(TOY, name="few words", vocab_size=64, mlp_width=640), PRIME, SMALLEST),
    (replace(TOY, name="biased", qkv_bias=True), TERNARY, SMALLEST),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As `peak_bytes` measures: each thread has room of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def setup_of(kind: Kind, **changes: Any) -> InferenceSetup:
    model, quant, pack = kind
    given = {"context": model.context, "prompt": model.context - 1, "batch_size": BATCH}
    given |= {"kernel": "native"}
    return InferenceSetup(model, quant, pack, **(given | changes))


def write(kind: Kind, path: Path) -> Any:
    model, quant, pack = kind
    return write_packed(
        build_model(model, quant),
        path=path,
        config=pack,
        attachments=Attachments(TokenizerParts(b"none", {}), {}),
        proof_tokens=torch.zeros(1, 4, dtype=torch.long),
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0].name)
def test_the_file_is_planned_to_the_byte(kind: Kind, tmp_path: Path) -> None:
    report = write(kind, tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = build_model(kind[0], None)
    planned = file_bytes(model, quant=kind[1], pack=kind[2])._asdict()
    measured = {part: report.bytes_by_part[part] for part in planned}
    assert planned == measured
    assert plan_inference(setup_of(kind)).file == sum(measured.values())


@pytest.mark.parametrize(
    ("kernel", "cached_weights"), [("native", 2**27), ("native", 0), ("torch", 2**27)]
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0].name)
def test_running_takes_what_is_planned(
    kind: Kind,
    kernel: Any,
    cached_weights: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_path, "CACHED_WEIGHTS", cached_weights)
    monkeypatch.setattr(native_path, "BASE3_ISAS", available_isas())
    monkeypatch.setenv("TRILITH_KERNELS", "torch" if kernel == "torch" else "auto")
    if kernel == "native" and chosen_isa() is None:
        pytest.skip("no native kernels on this machine")
    write(kind, tmp_path / "model.safetensors")
    plan = plan_inference(setup_of(kind, kernel=kernel))
    engine = Engine.load(tmp_path / "model.safetensors")
    # Embedding and head are the file's own bytes.
    rows = {f"{name}.{key}" for name in ("embedding", "head") for key in ("values", "scale")}
    buffers = [
        t for name, t in engine.model.named_buffers(remove_duplicate=False) if name not in rows
    ]
    held = storage_bytes([*engine.model.parameters(), *buffers])
    if engine.decoder is not None:
        # Its cosines and sines.
        held += 2 * 4 * kind[0].context * kind[0].head_width
    cache = engine.new_cache(batch_size=BATCH, capacity=kind[0].context)
    tokens = torch.randint(0, kind[0].vocab_size, (BATCH, kind[0].context - 1))
    prefill = peak_bytes(lambda: engine.prefill(tokens, cache=cache))
    decode = peak_bytes(lambda: engine.decode_one_token(tokens[:, 0], cache=cache))
    assert plan.unpacked == held
    assert plan.kv_cache == cache.nbytes
    assert plan.prefill == pytest.approx(prefill, rel=0.05)
    assert plan.decode == pytest.approx(decode, rel=0.05)
    measured = plan.file + held + cache.nbytes + max(prefill, decode)
    assert plan.total == pytest.approx(measured, rel=0.05)


def test_the_cache_of_tritters_plan() -> None:
    """32 layers, 8 key/value heads of 128 features, 131,072 tokens: 4.3 GB, and scales."""
    kind = (shape("7b", 32_000), TERNARY, SMALLEST)
    sizes = {
        bits: plan_inference(
            setup_of(kind, context=131_072, batch_size=1, cache=CacheConfig(bits))
        ).kv_cache
        for bits in (4, 8, 16, 32)
    }
    num_heads, num_values = 32 * 8, 2 * 32 * 8 * 128 * 131_072
    assert (sizes[32], sizes[16]) == (4 * num_values, 2 * num_values)
    # 16 bits each for scale and zero: of a value, of 32 keys by channel; the newest keys in 16.
    scales = 4 * num_heads * 131_072 + 4 * num_heads * 128 * 131_072 // 32
    near = 2 * num_heads * 32 * 128
    assert sizes[8] == num_values + scales + near
    assert sizes[4] == num_values // 2 + scales + near
    assert num_values // 2 == 4_294_967_296


@pytest.mark.parametrize("layers", ["held", "streamed"])
@pytest.mark.parametrize(
    "cache", [CacheConfig(), CacheConfig(8), CacheConfig(4), CacheConfig(16, 90, 4)], ids=str
)
def test_the_caches_of_a_server_take_what_is_planned(
    cache: CacheConfig, layers: Any, tmp_path: Path
) -> None:
    context = 1100
    kind = (replace(TOY, context=context), TERNARY, SMALLEST)
    write(kind, tmp_path / "model.safetensors")
    engine = Engine.load(tmp_path / "model.safetensors", cache=cache, layers=layers)
    running = [engine.new_cache(batch_size=1, capacity=context) for _ in range(3)]
    kept = KeptCaches(2)
    last = GenerateConfig(1, (), SamplingConfig(0.0, None, None, 1.0, 0))
    for first in (1, 2, 3):
        list(engine.generate([first] * context, config=last, kept=kept))
    plan = plan_inference(
        setup_of(kind, cache=cache, layers=layers, batch_size=1, running=3, kept=2)
    )
    assert plan.kv_cache == sum(each.nbytes for each in running)
    assert plan.kept == pytest.approx(kept.nbytes, rel=0.05)


@pytest.mark.parametrize("kernel", ["native", "torch"])
def test_decoding_several_caches_takes_what_is_planned(
    kernel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", "torch" if kernel == "torch" else "auto")
    if kernel == "native" and chosen_isa() is None:
        pytest.skip("no native kernels on this machine")
    write(KINDS[0], tmp_path / "model.safetensors")
    engine = Engine.load(tmp_path / "model.safetensors")
    caches = [engine.new_cache(batch_size=1, capacity=200) for _ in range(6)]
    for cache in caches:
        engine.prefill(torch.ones(1, 190, dtype=torch.long), cache=cache)
    tokens_B = torch.ones(6, dtype=torch.long)
    decode = peak_bytes(lambda: engine.decode_together(tokens_B, caches=caches))
    plan = plan_inference(setup_of(KINDS[0], kernel=kernel, batch_size=1, running=6))
    assert plan.decode == pytest.approx(decode, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0].name)
def test_a_gpu_holds_what_is_planned(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the engine builds a model for a device; one without memory has the same sizes."""
    pytest.importorskip("triton", reason="the extra gpu is not installed")
    monkeypatch.setenv("TRILITH_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    write(kind, tmp_path / "model.safetensors")
    model = build_packed_model(
        read_packed(tmp_path / "model.safetensors"), device=torch.device("meta")
    )
    plan = plan_inference(setup_of(kind, kernel="triton"))
    # A tied head is the embedding itself, which without memory it cannot stay.
    tensors = [*model.named_parameters(), *model.named_buffers()]
    held = [t.nbytes for name, t in tensors if not (name == "head.weight" and kind[0].tied_head)]
    assert (plan.file, plan.unpacked) == (0, sum(held))
    cache = StaticCache(
        kind[0], batch_size=BATCH, capacity=kind[0].context, device=torch.device("meta")
    )
    assert plan.kv_cache == cache.keys.nbytes + cache.values.nbytes


@pytest.mark.parametrize("kernel", ["native", "torch", "triton"])
@pytest.mark.parametrize("memory_bytes", [10**6, 10**7, 10**8])
def test_the_longest_context_is_the_last_that_fits(kernel: Any, memory_bytes: int) -> None:
    setup = setup_of(KINDS[0], kernel=kernel, prompt=16)

    def total(context: int) -> int:
        return plan_inference(setup_of(KINDS[0], kernel=kernel, prompt=16, context=context)).total

    longest = longest_context(setup, memory_bytes=memory_bytes)
    if longest:
        assert total(longest) <= memory_bytes < total(longest + 1)
    else:
        assert total(16) > memory_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"prompt": 300}, "prompt=300 is longer than context=256"),
        ({"running": 0}, "running=0 must be at least 1"),
        ({"kept": -1}, "kept=-1 must not be negative"),
        ({"kernel": "triton", "cache": CacheConfig(8)}, "do not run on a GPU"),
        ({"kernel": "triton", "cache": CacheConfig(32, 9)}, "do not run on a GPU"),
        ({"kernel": "triton", "layers": "streamed"}, "have no effect on a GPU"),
        ({"kernel": "triton", "kept": 1}, "have no effect on a GPU"),
    ],
)
def test_an_impossible_setup_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        setup_of(KINDS[0], **changes)
