"""Packing and loading at a real size: TinyLlama-1.1B's shape, random weights, all of it measured.

    python benchmarks/packing.py pack     # a dense folder in bfloat16 to one ternary file
    python benchmarks/packing.py load     # that file, until the engine is ready

The folder (2.2 GB) and the file stay below --folder. Time, processor time and peak memory are those
of a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

from trilith.hardware import device_name
from trilith.model import ModelConfig
from trilith.packed import measure, read_packed

ROOT = Path(__file__).parents[1]
_STD = 0.02
_LOAD = """
import json, resource, sys, time
from pathlib import Path

def peak_bytes():
    lines = open("/proc/self/status")
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

import torch
torch_bytes = peak_bytes()
from trilith.runtime import Engine
imports_bytes, imports_s = peak_bytes(), time.process_time()
torch.set_num_threads(int(sys.argv[2]))
start = time.perf_counter()
engine = Engine.load(Path(sys.argv[1]))
load_s, load_processor_s = time.perf_counter() - start, time.process_time() - imports_s
cache = engine.new_cache(batch_size=1, capacity=128)
engine.prefill(torch.arange(1, 65)[None], cache=cache)
engine.decode_one_token(torch.tensor([1]), cache=cache)
print(json.dumps({
    "load_s": load_s,
    "load_processor_s": load_processor_s,
    "imports_processor_s": imports_s,
    "torch_import_bytes": torch_bytes,
    "imports_bytes": imports_bytes,
    "kv_cache_bytes": cache.nbytes,
    "peak_bytes": peak_bytes(),
}))
"""


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("pack", "load"))
    parser.add_argument("--model", default="tinyllama", help="a file of conf/model")
    parser.add_argument("--choice", default="compact", help="a file of conf/pack")
    parser.add_argument("--grid", default="ternary")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/packing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="loads; the best figure counts")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/packing.json")
    options = parser.parse_args()
    packed = options.folder / f"{options.model}-{options.grid}-{options.choice}.safetensors"
    figures = _pack(options, packed) if options.mode == "pack" else _load(options, packed)
    for key, value in figures.items():
        print(f"{key:<28}{value:>16,.3f}" if isinstance(value, float) else f"{key:<28}{value:>16,}")
    print(f"{options.threads} threads, {device_name()}")
    content = json.loads(options.json.read_text()) if options.json.is_file() else {}
    key = f"{options.mode} {packed.stem}"
    content |= {"hardware": {"device": device_name()}, key: figures}
    options.json.write_text(json.dumps(content, indent=2) + "\n")


def _pack(options: argparse.Namespace, packed: Path) -> dict[str, Any]:
    source = options.folder / options.model
    if not (source / "config.json").is_file():
        write_random(source, ModelConfig(**_section("model", options.model)))
    choice = _section("pack", options.choice)
    given = [f"--{k.replace('_', '-')}={v}" for k, v in choice.items() if v is not None]
    trilith = "import sys; from trilith.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", trilith, "pack", str(source), "--grid", options.grid]
    start = time.perf_counter()
    _run([*command, *given, "--out", str(packed), "--force"], threads=options.threads)
    wall_s = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = measure(read_packed(packed))
    return {
        "file_bytes": report.file_bytes,
        "file_mib": report.file_bytes / 2**20,
        **{f"bytes/{part}": size for part, size in report.bytes_by_part.items() if size},
        "peak_gb": used.ru_maxrss * 1024 / 1e9,
        "minutes": wall_s / 60,
        "processor_minutes": (used.ru_utime + used.ru_stime) / 60,
    }


def _load(options: argparse.Namespace, packed: Path) -> dict[str, Any]:
    loads = []
    for _ in range(options.repeats):
        command = [sys.executable, "-c", _LOAD, str(packed), str(options.threads)]
        loads.append(json.loads(_run(command, threads=options.threads)))
    # Each of them is disturbed by other work in its own way; bytes differ by little.
    best = {key: min(load[key] for load in loads) for key in loads[0]}
    beyond = best["peak_bytes"] - packed.stat().st_size - best["kv_cache_bytes"]
    return best | {"beyond_file_and_kv_cache_mb": beyond / 1e6}


def _run(command: list[str], *, threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def _section(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"conf/{group}/{name}.yaml").read_text())


def write_random(folder: Path, shape: ModelConfig) -> None:
    """Write a Hugging Face folder of this shape: random weights in bfloat16, a shard a layer."""
    folder.mkdir(parents=True, exist_ok=True)
    kv_width = shape.num_kv_heads * shape.head_width
    layer = {
        "self_attn.q_proj": (shape.width, shape.width),
        "self_attn.k_proj": (kv_width, shape.width),
        "self_attn.v_proj": (kv_width, shape.width),
        "self_attn.o_proj": (shape.width, shape.width),
        "mlp.gate_proj": (shape.mlp_width, shape.width),
        "mlp.up_proj": (shape.mlp_width, shape.width),
        "mlp.down_proj": (shape.width, shape.mlp_width),
        "input_layernorm": (shape.width,),
        "post_attention_layernorm": (shape.width,),
    }
    ends = {"model.embed_tokens": (shape.vocab_size, shape.width), "model.norm": (shape.width,)}
    ends |= {} if shape.tied_head else {"lm_head": (shape.vocab_size, shape.width)}
    parts = [ends] + [
        {f"model.layers.{index}.{name}": size for name, size in layer.items()}
        for index in range(shape.num_layers)
    ]
    generator = torch.Generator().manual_seed(0)
    file_of = {}
    for number, part in enumerate(parts):
        tensors = {f"{name}.weight": _drawn(size, generator) for name, size in part.items()}
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(tensors, folder / file)
        file_of |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": file_of}))
    (folder / "tokenizer.model").write_bytes(_tokenizer(shape.vocab_size))
    (folder / "config.json").write_text(json.dumps(_huggingface_config(shape)))


def _drawn(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.randn(size, generator=generator).mul_(_STD).to(torch.bfloat16)


def _huggingface_config(shape: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "intermediate_size": shape.mlp_width,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied_head,
    }


def _tokenizer(vocab_size: int) -> bytes:
    """A SentencePiece model of so many pieces, about as long as real ones (16 bytes a piece)."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 2
    model.trainer_spec.vocab_size = vocab_size
    model.trainer_spec.byte_fallback = True
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{b:02X}>", 6) for b in range(256))]
    pieces += [(f"\u2581{number:06}", 1) for number in range(vocab_size - len(pieces))]
    for rank, (text, kind) in enumerate(pieces):
        model.pieces.add(piece=text, score=-float(rank), type=kind)
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    main()
