"""Sizes against arithmetic on the shapes, and against the file itself."""

from typing import Any

import pytest
import torch

from trilith.packed import measure, read_packed
from trilith.quant import BitLinear, QuantConfig

# qkv 24 -> 24 + 2 * 8, out 24 -> 24, up 24 -> 80, down 40 -> 24, in two layers.
SHAPES = [(40, 24), (24, 24), (80, 24), (24, 40)] * 2
NUM_WEIGHTS = sum(o * i for o, i in SHAPES)
EMBEDDING = 37 * 24
NORMS = 5 * 24


def test_every_byte_of_a_ternary_file_is_accounted_for(pack: Any) -> None:
    report = pack().report
    parts = report.bytes_by_part
    assert parts["codes"] == sum(-(-o * i // 5) for o, i in SHAPES)
    assert parts["scales"] == 4 * len(SHAPES)
    assert parts["dense"] == parts["head"] == 0
    assert parts["embedding"] == 2 * EMBEDDING
    assert parts["norms"] == 4 * NORMS
    assert parts["tokenizer"] == 66
    assert sum(parts.values()) == report.file_bytes == report.path.stat().st_size
    assert report.num_weights == NUM_WEIGHTS
    assert report.num_parameters == NUM_WEIGHTS + EMBEDDING + NORMS
    assert report.bits_per_weight == 8 * (parts["codes"] + parts["scales"]) / NUM_WEIGHTS
    weights = parts["codes"] + parts["scales"] + parts["embedding"] + parts["norms"]
    assert report.bits_per_parameter == 8 * weights / report.num_parameters


@pytest.mark.parametrize(
    ("quant", "options", "expected"),
    [
        (None, {}, {"dense": 2 * NUM_WEIGHTS, "codes": 0, "scales": 0}),
        (QuantConfig("ternary", "absmean", "row", None, 8), {}, {"scales": 4 * 2 * 168}),
        (QuantConfig("prime7", "least_squares", "group", 8, 8), {}, {"scales": NUM_WEIGHTS // 2}),
        (
            QuantConfig("prime7", "least_squares", "tensor", None, 8),
            {},
            {"codes": NUM_WEIGHTS * 3 // 8},
        ),
        (QuantConfig("sign", "absmean", "tensor", None, 8), {}, {"codes": NUM_WEIGHTS // 8}),
        (
            QuantConfig("ternary", "absmean", "tensor", None, 8),
            {"codec": "bits2", "embedding": "int8", "tied_head": False},
            {
                "codes": NUM_WEIGHTS // 4,
                "embedding": EMBEDDING + 4 * 37,
                "head": EMBEDDING + 4 * 37,
            },
        ),
    ],
    ids=["dense", "rows", "groups", "prime7", "sign", "bits2 int8 untied"],
)
def test_bytes_by_part(
    pack: Any, quant: QuantConfig | None, options: dict[str, Any], expected: dict[str, int]
) -> None:
    report = pack(quant, **options).report
    assert {part: report.bytes_by_part[part] for part in expected} == expected
    assert sum(report.bytes_by_part.values()) == report.file_bytes


def test_biases_are_float32_and_count(pack: Any) -> None:
    plain, biased = pack().report, pack(qkv_bias=True).report
    assert (plain.bytes_by_part["biases"], biased.bytes_by_part["biases"]) == (0, 4 * 2 * 40)
    assert biased.num_parameters == plain.num_parameters + 2 * 40
    assert biased.num_weights == NUM_WEIGHTS
    assert sum(biased.bytes_by_part.values()) == biased.file_bytes


def test_int8_scales_are_no_parameters(pack: Any) -> None:
    plain = pack(embedding="bf16", tied_head=False).report
    small = pack(embedding="int8", tied_head=False).report
    assert plain.num_parameters == small.num_parameters == NUM_WEIGHTS + 2 * EMBEDDING + NORMS


def test_a_file_that_is_read_measures_as_when_it_was_written(pack: Any) -> None:
    packed = pack()
    assert measure(read_packed(packed.path)) == packed.report


def test_code_counts_are_those_of_the_model(pack: Any) -> None:
    packed = pack(QuantConfig("prime7", "least_squares", "row", None, 8))
    codes = torch.cat(
        [
            m.quantized_weight().codes.flatten()
            for m in packed.model.modules()
            if isinstance(m, BitLinear)
        ]
    )
    expected = [int((codes == code).sum()) for code in range(7)]
    assert packed.report.code_counts == {"prime7": expected}
    assert sum(expected) == NUM_WEIGHTS
