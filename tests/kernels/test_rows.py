"""Stored rows: what is restored against numbers by hand, native products against torch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trilith.kernels import Isa, PackedEmbedding, PackedHead, StoredRows, available_isas
from trilith.kernels import multiply_rows as native_product
from trilith.kernels.choice import ISA_NUMBERS
from trilith.packed import RowForm, row_bytes, store_rows

FORMS = [
    RowForm("f32", None),
    RowForm("bf16", None),
    RowForm("int8", None),
    *(RowForm(name, size) for name in ("int4", "int3") for size in (8, 24, 40, 120)),  # type: ignore[arg-type]
]
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form[0]}-{form[1]}")


def _weight(num_rows: int = 150, width: int = 120) -> Tensor:
    weight = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(3)) * 0.02
    weight[7] = 0
    return weight


def _by_hand(rows: StoredRows, bits: int) -> np.ndarray:
    """Levels of codes that are read bit by bit."""
    scale = rows.scale.double().numpy()  # type: ignore[union-attr]
    found = np.empty(rows.shape)
    for at, row in enumerate(rows.values.numpy()):
        bit = np.unpackbits(row, bitorder="little").reshape(-1, bits)
        codes = (bit * 2 ** np.arange(bits)).sum(axis=1)
        found[at] = (2 * codes - (2**bits - 1)) * scale[at].repeat(rows.width // scale.shape[1])
    return found


@each_form
def test_restored_rows_are_near_and_take_the_planned_bytes(form: RowForm) -> None:
    weight = _weight()
    rows = store_rows(weight, form)
    restored = rows.restore()
    # Half a step of a group, whose outermost level the fit may put below its largest weight.
    allowed = {"f32": 0, "bf16": 2**-8, "int8": 1 / 127, "int4": 0.12, "int3": 0.23}
    error = (restored - weight).square().mean().sqrt() / weight.square().mean().sqrt()
    assert error <= allowed[form.precision]
    assert (restored[7] == 0).all()
    parts = [rows.values] + ([] if rows.scale is None else [rows.scale])
    assert sum(part.nbytes for part in parts) == row_bytes((150, 120), form)
    if form.precision in ("int4", "int3"):
        expected = _by_hand(rows, int(form.precision[-1]))
        assert np.array_equal(restored.numpy(), expected.astype(np.float32))


@each_form
def test_an_embedding_restores_the_rows_of_its_tokens(form: RowForm) -> None:
    rows = store_rows(_weight(), form)
    tokens = torch.tensor([[3, 149], [0, 3]])
    assert torch.equal(PackedEmbedding(rows)(tokens), rows.restore()[tokens])


@each_form
def test_a_head_multiplies_with_what_is_restored(form: RowForm) -> None:
    rows = store_rows(_weight(), form)
    x = torch.randn(2, 5, 120)
    torch.testing.assert_close(PackedHead(rows)(x), x @ rows.restore().T)


@pytest.mark.skipif(not available_isas(), reason="no C compiler")
@each_form
def test_native_products_agree_with_torch_and_with_each_other(form: RowForm) -> None:
    rows = store_rows(_weight(), form)
    x = torch.randn(3, 120, generator=torch.Generator().manual_seed(4))
    exact = (_in_16_bits(x) if form.precision == "int8" else x.double()) @ rows.restore().double().T
    found = []
    before = torch.get_num_threads()
    for name in available_isas():
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(native_product(x, rows=rows, isa=Isa(name, ISA_NUMBERS[name])))
    torch.set_num_threads(before)
    # float32 sums of 120 products.
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(product, found[0]) for product in found)


def _in_16_bits(x: Tensor) -> Tensor:
    """What rows of int8 are multiplied with: steps of the token's largest activation."""
    step = x.double().abs().amax(-1, keepdim=True) / 32767
    return (x / step).round() * step


@pytest.mark.skipif(not available_isas(), reason="no C compiler")
@pytest.mark.parametrize("width", [5, 17, 48, 640, 4096, 4100, 9001])
def test_rows_of_eight_bits_have_the_same_bits_for_every_instruction_set(width: int) -> None:
    rows = store_rows(_weight(num_rows=70, width=width), RowForm("int8", None))
    rows.values[0] = -128
    x = torch.randn(6, width, generator=torch.Generator().manual_seed(5)) * 30
    # The largest sums that there can be, and the smallest numbers.
    x[1], x[2, 3], x[3], x[4], x[5, 0] = 0, torch.nan, 7.0, 1e-42, torch.inf
    isas = [Isa(name, ISA_NUMBERS[name]) for name in available_isas()]
    found = [native_product(x, rows=rows, isa=isa) for isa in isas]
    expected = _in_16_bits(x) @ rows.restore().double().T
    for token in (0, 3):
        step = x[token].abs().max() / 32767
        # One of the activations may have been rounded the other way.
        torch.testing.assert_close(
            found[0][token].double(), expected[token], rtol=1e-5, atol=float(step) * width**0.5
        )
    assert not found[0][1].any() and found[0][4].isfinite().all()
    assert found[0][2].isnan().all() and found[0][5].isnan().all()
    for product in found:
        torch.testing.assert_close(product, found[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not available_isas(), reason="no C compiler")
@pytest.mark.parametrize("size", [8, 40, 128, 640])
def test_rows_of_four_bits_have_the_same_bits_for_every_instruction_set(size: int) -> None:
    rows = store_rows(_weight(num_rows=70, width=640), RowForm("int4", size))
    x = torch.randn(4, 640, generator=torch.Generator().manual_seed(5)) * 30
    x[1], x[2, 9], x[3] = 0, torch.nan, torch.cat([torch.tensor([3e4]), torch.full((639,), 1e-3)])
    isas = [Isa(name, ISA_NUMBERS[name]) for name in available_isas()]
    found = [native_product(x, rows=rows, isa=isa) for isa in isas]
    expected = x.double() @ rows.restore().double().T
    # Steps of the largest activation over 2^22.
    torch.testing.assert_close(found[0][0].double(), expected[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[0][3].double(), expected[3], rtol=1e-5, atol=3e4 * 2**-22)
    assert not found[0][1].any() and found[0][2].isnan().all()
    assert all(torch.equal(product.nan_to_num(), found[0].nan_to_num()) for product in found)


def test_fitted_odd_levels_lose_less_than_levels_with_a_zero() -> None:
    weight = _weight(200, 128)[8:]
    restored = store_rows(weight, RowForm("int3", 128)).restore()
    scale = weight.abs().amax(dim=1, keepdim=True) / 3
    with_zero = (weight / scale).round() * scale
    assert (restored - weight).square().sum() < 0.6 * (with_zero - weight).square().sum()


@pytest.mark.parametrize("size", [None, 12, 16, 7])
def test_groups_that_do_not_fit_are_refused(size: int | None) -> None:
    with pytest.raises(ValueError, match=rf"pack.group_size={size} does not fit rows of 120"):
        store_rows(_weight(), RowForm("int4", size))


def test_weights_beyond_float16_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="beyond what int4 stores"):
        store_rows(_weight() * 1e9, RowForm("int4", 24))


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (torch.zeros(4, 8), torch.ones(4, 1)),
        (torch.zeros(4, 9), None),
        (torch.zeros(4, 8, dtype=torch.int8), None),
        (torch.zeros(4, 8, dtype=torch.int8), torch.ones(3, 1)),
        (torch.zeros(4, 4, dtype=torch.uint8), torch.ones(4, 1)),
        (torch.zeros(4, 4, dtype=torch.uint8), torch.ones(4, 2, dtype=torch.float16)),
        (torch.zeros(4, 5, dtype=torch.uint8), torch.ones(4, 1, dtype=torch.float16)),
        (torch.zeros(4, 8, dtype=torch.float64), None),
        (torch.zeros(4, 4, dtype=torch.uint8), torch.ones(4, 0, dtype=torch.float16)),
    ],
)
def test_parts_that_do_not_fit_are_refused(values: Tensor, scale: Tensor | None) -> None:
    with pytest.raises(ValueError, match="rows of 8 features cannot be"):
        StoredRows(values, scale, 8)
