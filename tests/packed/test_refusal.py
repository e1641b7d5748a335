"""A packed file that is foreign, newer, damaged or edited is refused, never half believed."""

import hashlib
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trilith.packed import load_model, read_packed, verify_packed
from trilith.runtime import Engine

Envelope = dict[str, Any]
Tensors = dict[str, Tensor]
Edit = Callable[[Envelope, Tensors], None]


def _rewrite(path: Path, edit: Edit, *, sign: bool) -> None:
    """Edit manifest and tensors of a packed file; `sign` makes its hash right again."""
    with safe_open(path, framework="pt") as file:
        envelope = json.loads(file.metadata()["trilith"])
        tensors = {name: file.get_tensor(name).clone() for name in file.offset_keys()}
    edit(envelope, tensors)
    if sign:
        body = json.dumps(envelope["manifest"], sort_keys=True, separators=(",", ":"))
        envelope["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    save_file(tensors, path, metadata={"trilith": json.dumps(envelope)})


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors.*pack stage"):
        read_packed(tmp_path / "nothing.safetensors")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        read_packed(tmp_path)


def test_a_file_of_version_1_has_no_biases(pack: Any) -> None:
    def make_older(envelope: Envelope, tensors: Tensors) -> None:
        envelope["version"] = 1
        del envelope["manifest"]["model"]["qkv_bias"]

    packed = pack()
    expected = load_model(packed.path)(torch.tensor([[1, 2, 3]]))
    _rewrite(packed.path, make_older, sign=True)
    assert not read_packed(packed.path).manifest.model.qkv_bias
    assert torch.equal(load_model(packed.path)(torch.tensor([[1, 2, 3]])), expected)


@pytest.mark.parametrize("content", [b"", b"GGUF" * 100, b"\x80\x04pickle", b"\0" * 500])
def test_other_formats_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file"):
        read_packed(path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"trilith": '{"format": "x"}'}, {"trilith": "[]"}], ids=str
)
def test_foreign_safetensors_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors is a safetensors file of another"):
        read_packed(path)


@pytest.mark.parametrize("kept", [0, 4, 8, 300, 0.5, -1])
def test_a_truncated_file_is_refused(pack: Any, kept: float) -> None:
    path = pack().path
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    with pytest.raises(
        ValueError, match=r"model\.safetensors is not a safetensors file, or is cut"
    ):
        read_packed(path)


def _drop(envelope: Envelope, tensors: Tensors) -> None:
    del tensors["norm.weight"]


def _add(envelope: Envelope, tensors: Tensors) -> None:
    tensors["surprise"] = torch.zeros(2)


def _retype(envelope: Envelope, tensors: Tensors) -> None:
    tensors["norm.weight"] = tensors["norm.weight"].double()


def _reshape(envelope: Envelope, tensors: Tensors) -> None:
    tensors["norm.weight"] = tensors["norm.weight"].view(2, 12)


def _flip(envelope: Envelope, tensors: Tensors) -> None:
    tensors["blocks.0.mlp.up.codes"][17] ^= 1


def _widen_context(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["model"]["context"] = 64


def _newer(envelope: Envelope, tensors: Tensors) -> None:
    envelope["version"] = 4


def _no_version(envelope: Envelope, tensors: Tensors) -> None:
    envelope["version"] = "one"


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (_drop, r"lacks the tensors \['norm.weight'\]"),
        (_add, r"unknown tensors \['surprise'\]"),
        (_retype, "norm.weight as float64 .* says float32"),
        (_reshape, r"\[2, 12\] where the manifest says float32 \[24\]"),
        (_flip, "damaged bytes in blocks.0.mlp.up.codes"),
        (_widen_context, "manifest that was changed after packing"),
        (_newer, "format version 4 and this trilith reads up to 3; upgrade"),
        (_no_version, "impossible format version 'one'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_at_odds_with_its_manifest_is_refused(pack: Any, edit: Edit, text: str) -> None:
    path = pack().path
    _rewrite(path, edit, sign=False)
    with pytest.raises(ValueError, match=rf"model\.safetensors .*{text}"):
        read_packed(path)


def _no_model(envelope: Envelope, tensors: Tensors) -> None:
    del envelope["manifest"]["model"]["width"]


def _impossible_model(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["model"]["num_heads"] = 5


def _more_layers(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["model"]["num_layers"] = 3


def _fewer_layers(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["model"]["num_layers"] = 1


def _wider(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["model"]["mlp_width"] = 41


def _larger_vocabulary(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["model"]["vocab_size"] = 38


def _strange_bits(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["activation_bits"] = 4


def _strange_codec(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["tensors"]["blocks.0.mlp.up.codes"]["codes"]["codec"] = "zip"


def _strange_grid(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["tensors"]["blocks.0.mlp.up.codes"]["codes"]["grid"] = "prime7"


def _no_tokenizer(envelope: Envelope, tensors: Tensors) -> None:
    del envelope["manifest"]["tensors"]["tokenizer.model"], tensors["tokenizer.model"]


def _other_tokenizer(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["tokenizer_sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (_no_model, "makes no sense"),
        (_impossible_model, "num_heads=5"),
        (_more_layers, "lacks blocks.2"),
        (_fewer_layers, "no place for"),
        (_wider, "where its model has"),
        (_larger_vocabulary, "where its model has"),
        (_strange_bits, "activation_bits=4"),
        (_strange_codec, "does not say how blocks.0.mlp.up.codes is packed"),
        (_strange_grid, "too few for grid prime7"),
        (_no_tokenizer, "holds no tokenizer"),
        (_other_tokenizer, "or another one than it says"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_manifest_with_right_hash_and_wrong_content_is_refused(
    pack: Any, edit: Edit, text: str
) -> None:
    path = pack().path
    _rewrite(path, edit, sign=True)
    with pytest.raises(ValueError, match=rf"(?s)model\.safetensors .*{text}"):
        load_model(path)


def _unknown_scale(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["tensors"]["blocks.0.mlp.up.codes"]["codes"]["scale"] = "nowhere"


def _flat_scale(envelope: Envelope, tensors: Tensors) -> None:
    name = "blocks.0.attention.qkv.scale"
    tensors[name] = tensors[name].view(-1)


def _no_scales(envelope: Envelope, tensors: Tensors) -> None:
    name = "blocks.0.attention.qkv.scale"
    tensors[name] = tensors[name][:, :0].contiguous()


def _three_axes(envelope: Envelope, tensors: Tensors) -> None:
    envelope["manifest"]["tensors"]["blocks.0.mlp.up.codes"]["codes"]["shape"] = [80, 24, 1]


def _no_rows(envelope: Envelope, tensors: Tensors) -> None:
    entry = envelope["manifest"]["tensors"]["blocks.0.mlp.up.codes"]
    entry["codes"]["shape"], entry["shape"] = [0, 24], [0]
    tensors["blocks.0.mlp.up.codes"] = torch.empty(0, dtype=torch.uint8)


def _huge(key: str, value: int) -> Edit:
    def edit(envelope: Envelope, tensors: Tensors) -> None:
        envelope["manifest"]["model"][key] = value

    edit.__name__ = f"_{key}_{value}"
    return edit


def _verify(path: Path) -> None:
    """As `trilith verify` does, whose answer is a list."""
    found = verify_packed(path)
    if found.problems:
        raise ValueError(found.problems[0])


DOORS: dict[str, Callable[[Path], object]] = {
    "engine": Engine.load,
    "streamed": partial(Engine.load, layers="streamed"),
    "verify": _verify,
    "model": load_model,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (_unknown_scale, "does not say how blocks.0.mlp.up.codes is packed"),
        (_flat_scale, "scales are float32"),
        (_no_scales, "scales are float32"),
        (_three_axes, "expected rows and columns"),
        (_no_rows, "expected rows and columns"),
        (_drop, "lacks the tensors"),
        (_add, "unknown tensors"),
        (_huge("mlp_width", 2**62), "weights, and holds"),
        (_huge("width", 24 * 2**50), "weights, and holds"),
        (_huge("vocab_size", 10**30), "weights, and holds"),
        (_huge("num_layers", 20_000), "20000 layers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_is_refused_by_every_door_at_once(
    pack: Any, edit: Edit, text: str, door: str
) -> None:
    path = pack().path
    _rewrite(path, edit, sign=True)
    with pytest.raises(ValueError, match=rf"(?s)model\.safetensors .*{text}"):
        DOORS[door](path)


def test_no_byte_can_change_unnoticed(pack: Any, proof_tokens: Tensor) -> None:
    path = pack(embedding="int8", tied_head=False).path
    content = path.read_bytes()
    with torch.no_grad():
        expected = load_model(path)(proof_tokens)
    generator = random.Random(0)
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    num_refused = 0
    for trial in range(300):
        damaged = bytearray(content)
        # A third in the header, a third anywhere, a third cut off.
        if trial % 3 == 2:
            del damaged[generator.randrange(len(content)) :]
        else:
            at = generator.randrange(header_bytes if trial % 3 == 0 else len(content))
            damaged[at] ^= generator.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            model = load_model(path)
        except ValueError as error:
            assert "model.safetensors" in str(error)
            num_refused += 1
            continue
        with torch.no_grad():
            assert torch.equal(model(proof_tokens), expected)
    # Only blanks of the header's JSON may change without a difference.
    assert num_refused >= 295
