"""The Triton kernels against float64 and against the eager references.

On CPU they need Triton's interpreter, which has to be asked for before Triton is imported, so `test_kernels.py` runs
this file in a process of its own. On a GPU: `python -m pytest tests/triton_cases.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench import interpreter
from dicache_compile.kernels import combine_triton, fused, statistics_triton

from .kernel_inputs import (
    COMPUTED,
    DEVICE,
    LAYOUTS,
    STORED,
    Case,
    Numbers,
    State,
    case,
    check_combined,
    double,
    same_bits,
)

if DEVICE == "cpu":
    interpreter.prepare()

MULTIPROCESSORS = 1  # few programs, so that each of them has several blocks of rows

SHAPES = [(1, 1, 1), (7,), (2, 5, 33), (50, 7), (1, 9, 1000), (3, 4, 2, 48), (2, 3, 1536)]
shapes = st.tuples(st.integers(1, 3), st.integers(1, 17), st.sampled_from((1, 7, 33, 512, 1000, 1025)))


def run(arguments: tuple[object, ...]) -> Tensor:
    return statistics_triton.statistics(*arguments, multiprocessors=MULTIPROCESSORS)  # type: ignore[arg-type]


def check_statistics(call: Case, *, whole: bool) -> None:
    arguments, reference = call.arguments(), call.arguments()
    sums = run(arguments)
    exact, bound = call.exact()
    if whole:
        assert torch.equal(sums.double(), exact)
    else:
        assert ((sums.double() - exact).abs() <= bound).all()
    fused.statistics(*reference)  # type: ignore[arg-type]
    for ours, theirs in zip(arguments[2:6], reference[2:6], strict=True):
        assert same_bits(ours, theirs)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_every_element_is_in_the_sums_once(stored: torch.dtype) -> None:
    for number, shape in enumerate(SHAPES):
        layouts = list(LAYOUTS)[number % 4], list(LAYOUTS)[number * 3 // 2 % 4]
        dtype = COMPUTED[(number + STORED.index(stored)) % 3]
        whole = case(Numbers(number, True), shape, dtype, stored, layouts, x_prev=number != 2, anchors=3 - number % 3)
        check_statistics(whole, whole=True)


@settings(max_examples=15, deadline=None)
@given(
    shape=shapes,
    dtype=st.sampled_from(COMPUTED),
    stored=st.sampled_from(STORED),
    layouts=st.tuples(*[st.sampled_from(list(LAYOUTS))] * 2),
    x_prev=st.booleans(),
    anchors=st.integers(-1, 5),
    seed=st.integers(0, 1000),
    whole=st.booleans(),
)
def test_statistics_err_by_no_more_than_float32_sums(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    stored: torch.dtype,
    layouts: tuple[str, str],
    x_prev: bool,
    anchors: int,
    seed: int,
    whole: bool,
) -> None:
    drawn = case(Numbers(seed, whole), shape, dtype, stored, layouts, x_prev=x_prev, anchors=anchors)
    check_statistics(drawn, whole=whole)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_statistics_are_the_same_bits_on_every_run(stored: torch.dtype) -> None:
    call = case(Numbers(1, False), (2, 5, 1000), torch.bfloat16, stored)
    first, second = call.arguments(), call.arguments()
    assert torch.equal(run(first), run(second))
    assert all(same_bits(a, b) for a, b in zip(first[2:6], second[2:6], strict=True))


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize(("where", "seen"), [("h", [0, 2]), ("x", [2, 3])])
def test_nan_reaches_the_sums_it_belongs_to_and_the_state(where: str, seen: list[int], stored: torch.dtype) -> None:
    call = case(Numbers(2, False), (2, 5, 33), torch.bfloat16, stored)
    getattr(call, where)[1, 2, 3] = float("nan")
    arguments = call.arguments()
    assert run(arguments).isnan().nonzero().flatten().tolist() == seen
    written = double((arguments[2], arguments[3]) if where == "h" else (arguments[4], arguments[5]))  # type: ignore[arg-type]
    assert written[1, 2, 3].isnan()
    assert not written[0].isnan().any()


@pytest.mark.parametrize("stored", [torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(("anchors", "empty"), [(0, (0, 1)), (1, (0, 1)), (2, (1,)), (3, (0,))])
def test_only_the_older_anchor_is_read(anchors: int, empty: tuple[int, ...], stored: torch.dtype) -> None:
    call = case(Numbers(3, True), (2, 5, 33), torch.float16, stored, anchors=anchors)
    for place in empty:
        for tensor in call.ring[place]:
            if tensor is not None:
                tensor.fill_(float("nan"))
    check_statistics(call, whole=True)


def test_rows_of_zeros_and_of_huge_and_tiny_numbers_are_stored_as_the_reference_stores_them() -> None:
    for stored in fused.FLOAT8:
        call = case(Numbers(4, False), (5, 33), torch.float32, stored)
        call.h *= torch.tensor([[0.0], [1e35], [1e-35], [1e-45], [1.0]], device=DEVICE)
        arguments, reference = call.arguments(), call.arguments()
        run(arguments)
        fused.statistics(*reference)  # type: ignore[arg-type]
        assert same_bits(arguments[2], reference[2])
        assert same_bits(arguments[3], reference[3])


def check_combine(base: Tensor, state: Sequence[State], weights: Tensor, dtype: torch.dtype) -> None:
    residuals, scales = [stored for stored, _ in state], [scale for _, scale in state if scale is not None]
    first, second = (
        combine_triton.combine(base, residuals, scales, weights, dtype, multiprocessors=MULTIPROCESSORS)
        for _ in range(2)
    )
    assert torch.equal(first, second)
    check_combined(first, base, state, weights, dtype)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_combine_masks_what_has_no_weight(stored: torch.dtype) -> None:
    for number, shape in enumerate(SHAPES):
        numbers, count = Numbers(number, False), 1 + number % 3
        base = list(LAYOUTS.values())[number % 4](numbers.stream(shape, COMPUTED[number % 3]))
        state = [numbers.state(shape, stored) for _ in range(count)]
        weights = numbers.stream((count,), torch.float32)
        weights[-1] = 0
        for tensor in state[-1]:
            if tensor is not None:
                tensor.fill_(float("nan"))
        check_combine(base, state, weights, COMPUTED[number // 2 % 3])


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_combine_masks_the_channels_that_have_no_weight(stored: torch.dtype) -> None:
    for number, shape in enumerate(SHAPES):
        numbers, count = Numbers(number, False), 1 + number % 3
        state = [numbers.state(shape, stored) for _ in range(count)]
        weights = numbers.stream((count, shape[-1]), torch.float32)
        weights[-1, ::2] = 0
        state[-1][0][..., ::2] = float("nan")
        check_combine(numbers.stream(shape, torch.bfloat16), state, weights, COMPUTED[number // 2 % 3])


@settings(max_examples=10, deadline=None)
@given(
    shape=shapes,
    dtypes=st.tuples(st.sampled_from(COMPUTED), st.sampled_from(STORED), st.sampled_from(COMPUTED)),
    layout=st.sampled_from(list(LAYOUTS)),
    count=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_combine_errs_by_no_more_than_float32(
    shape: tuple[int, int, int],
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    layout: str,
    count: int,
    seed: int,
) -> None:
    numbers = Numbers(seed, False)
    base = LAYOUTS[layout](numbers.stream(shape, dtypes[0]))
    state = [numbers.state(shape, dtypes[1]) for _ in range(count)]
    check_combine(base, state, numbers.stream((count,), torch.float32), dtypes[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_or_a_base_that_is_no_number_is_seen(value: float) -> None:
    base, residual = torch.zeros(2, 33, device=DEVICE), torch.ones(2, 33, device=DEVICE)
    weights = torch.tensor([value], device=DEVICE)
    out = combine_triton.combine(base, [residual], [], weights, torch.float16, multiprocessors=1)
    assert not out.isfinite().any()
    base[1, 1] = value
    out = combine_triton.combine(base, [residual], [], torch.zeros(1, device=DEVICE), torch.float16, multiprocessors=1)
    assert (~out.isfinite()).nonzero().tolist() == [[1, 1]]
