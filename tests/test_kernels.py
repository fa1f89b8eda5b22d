"""The fused operations: their references, their operators in graphs, and their Triton kernels.

The kernels run in processes of their own: under Triton's interpreter, which has to be asked for before Triton is first
imported, and Inductor may have imported it here; and through its compiler, which that interpreter replaces.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile.estimators import DCTA
from dicache_compile.gates import ProbeError
from dicache_compile.kernels import fused, operators

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

SHAPE = (2, 5, 33)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(source: list[str], **variables: str) -> str:
    """A Python process in the root of the repository; what it printed, once it has ended well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, *source], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_and_its_operators_need_no_triton() -> None:
    without_triton = "import sys; sys.modules['triton'] = None; import dicache_compile\n"
    use = "import torch; from dicache_compile.kernels import operators\n"
    use += "one = torch.ones(2, 3); print(operators.combine(one, [one], [], torch.ones(1), one.dtype).sum().item())"
    assert run(["-c", without_triton + use]) == "12.0\n"


@needs_triton
def test_the_kernels_agree_with_float64_and_the_references_under_the_interpreter() -> None:
    assert " passed" in run(["-m", "pytest", "--noconftest", "tests/triton_cases.py"], TRITON_INTERPRET="1")


@needs_triton
def test_the_kernels_compile_for_hopper(tmp_path: Path) -> None:
    options = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    assert " passed" in run(["-m", "pytest", "--noconftest", "tests/triton_compiled.py"], **options)


@needs_triton
def test_what_inductor_makes_of_the_pieces_compiles_for_hopper(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    chosen = ["-m", request.config.option.markexpr]
    options = {"TRITON_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    assert " passed" in run(["-m", "pytest", "--noconftest", *chosen, "tests/inductor_triton.py"], **options)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_statistics_are_the_sums_of_float64(stored: torch.dtype) -> None:
    for whole, dtype, layout, anchors in itertools.product((True, False), COMPUTED, LAYOUTS, (-1, 1, 2, 3)):
        call = case(Numbers(anchors + 1, whole), SHAPE, dtype, stored, (layout, "contiguous"), anchors=anchors)
        arguments = call.arguments()
        sums = torch.ops.dicache.statistics(*arguments)
        exact, bound = call.exact()
        assert ((sums.double() - exact).abs() <= (0 if whole else bound)).all()
        check_stored(call.h, arguments[2], arguments[3])
        check_stored(call.x, arguments[4], arguments[5])


def check_stored(values: Tensor, stored: Any, scale: Any) -> None:
    """State errs by half a last place of its dtype; in float8, of numbers of which the largest in a row is the format's
    largest: what is below the smallest normal one there errs as much as that, and the division and the product with
    the scale by eps/2 of float32 each.
    """
    info = torch.finfo(stored.dtype)
    unit = 1.0 if scale is None else scale.double()
    bound = (info.eps / 2 + torch.finfo(torch.float32).eps) * (values.double().abs() + unit * info.tiny)
    assert ((double((stored, scale)) - values.double()).abs() <= bound).all()


@pytest.mark.parametrize("stored", fused.FLOAT8, ids=str)
def test_float8_state_uses_the_whole_range_in_every_row(stored: torch.dtype) -> None:
    call = case(Numbers(0, False), SHAPE, torch.float32, stored)
    call.h[0] *= 1e30
    call.h[1] *= 1e-20
    arguments = call.arguments()
    torch.ops.dicache.statistics(*arguments)
    assert (arguments[2].float().abs().amax(-1) == torch.finfo(stored).max).all()  # type: ignore[attr-defined]


def test_float8_state_of_a_row_with_a_nan_or_an_infinity_is_nan_and_of_zeros_zero() -> None:
    call = case(Numbers(0, False), SHAPE, torch.float32, torch.float8_e4m3fn)
    call.h[0, 0, 0], call.h[0, 1, 0], call.h[1, 0] = float("nan"), float("inf"), 0.0
    arguments = call.arguments()
    sums = torch.ops.dicache.statistics(*arguments)
    stored = double(arguments[2:4])  # type: ignore[arg-type]
    assert stored.isnan().sum(-1).tolist() == [[33, 33, 0, 0, 0], [0] * 5]
    assert (stored[1, 0] == 0).all()
    assert sums.isnan().tolist() == [True, False, True, False, False]


def test_the_sums_are_what_the_gate_and_the_estimator_measure() -> None:
    call = case(Numbers(0, False), SHAPE, torch.float32, torch.float32)
    state = {"h_prev": call.h_prev[0], "x_prev": call.x_prev[0], "p1": call.ring[0][0], "p2": call.ring[1][0]}
    state["anchor_gap"] = (state["p1"] - state["p2"]).abs().mean()
    state["gamma_range"] = torch.tensor([0.0, 10.0], device=DEVICE)
    sums = torch.ops.dicache.statistics(*call.arguments())
    error = ProbeError(0.1, error="probe_minus_input").measure(call.x, call.h, state)
    torch.testing.assert_close((sums[0] / sums[1] - sums[3] / sums[4]).abs(), error)
    gamma = DCTA((0.0, 10.0)).weigh(call.x, call.h, torch.tensor(3, device=DEVICE), state)
    torch.testing.assert_close(sums[2] / call.h.numel() / state["anchor_gap"], gamma)


@pytest.mark.parametrize("anchors", [1, 2])
def test_combine_is_the_estimate_of_dcta(anchors: int) -> None:
    numbers = Numbers(0, False)
    x, r1, r2 = (numbers.stream(SHAPE, torch.float32) for _ in range(3))
    if anchors == 1:
        r2.fill_(float("nan"))
    gamma = torch.tensor(0.7, device=DEVICE)
    state = {"r1": r1, "r2": r2}
    estimate = DCTA((0.0, 1.0)).estimate(x, gamma, torch.tensor(anchors, device=DEVICE), state)
    weights = torch.stack([gamma, 1 - gamma]) if anchors == 2 else torch.tensor([1.0, 0.0], device=DEVICE)
    torch.testing.assert_close(torch.ops.dicache.combine(x, [r1, r2], [], weights, x.dtype), estimate)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_combine_is_the_sum_of_float64_without_what_has_no_weight(stored: torch.dtype) -> None:
    for layout, (count, dtype), per_channel in itertools.product(LAYOUTS, enumerate(COMPUTED, start=1), (False, True)):
        numbers = Numbers(count, False)
        base = LAYOUTS[layout](numbers.stream(SHAPE, COMPUTED[-count]))
        state = [numbers.state(SHAPE, stored) for _ in range(count)]
        weights = numbers.stream((count, SHAPE[-1]) if per_channel else (count,), torch.float32)
        every = 2 if per_channel else 1
        weights[-1].view(-1)[::every] = 0
        state[-1][0][..., ::every] = float("nan")
        check_combined(combine(base, state, weights, dtype), base, state, weights, dtype)


def combine(base: Tensor, state: Sequence[State], weights: Tensor, dtype: torch.dtype) -> Tensor:
    stored, scales = [kept for kept, _ in state], [scale for _, scale in state if scale is not None]
    return operators.combine(base, stored, scales, weights, dtype)  # type: ignore[no-any-return]


@pytest.mark.parametrize("stored", [torch.float16, torch.float8_e5m2], ids=str)
def test_pytorch_finds_no_fault_with_the_operators(stored: torch.dtype) -> None:
    # The check of the schema compares what was written, and PyTorch cannot compare float8.
    checks = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    checks += ["test_schema"] if stored is torch.float16 else []
    for x_prev, anchors in ((False, 2), (True, -1)):
        call = case(
            Numbers(0, False), SHAPE, torch.float16, stored, ("sliced", "transposed"), x_prev=x_prev, anchors=anchors
        )
        torch.library.opcheck(torch.ops.dicache.statistics.default, call.arguments(), test_utils=checks)
        scales = [scale for _, scale in call.ring if scale is not None]
        arguments = (call.h, [kept for kept, _ in call.ring], scales, torch.ones(2, device=DEVICE), torch.bfloat16)
        if anchors > 0:
            torch.library.opcheck(torch.ops.dicache.combine.default, arguments, test_utils=checks)


def step(
    h: Tensor, x: Tensor, h_prev: Tensor, scale: Tensor | None, p: list[Tensor], scales: list[Tensor], anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Both operators with other work around them, as in a graph of a model; the state is read again afterwards."""
    joint = torch.cat([x, 2 * h], dim=1)
    tail = joint[:, x.shape[1] :] / 2
    sums = torch.ops.dicache.statistics(tail, x, h_prev, scale, None, None, p, scales, anchors)
    weights = sums[:2] / sums[:2].sum()
    out = torch.ops.dicache.combine(tail.transpose(0, 1), [q.transpose(0, 1) for q in p], scales, weights, x.dtype)
    return sums, out, h_prev.float() + 1


@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", False), ("aot_eager", True), ("inductor", True)])
def test_compiled_graphs_hold_the_operators_and_write_the_state(backend: str, dynamic: bool) -> None:
    call_step = torch.compile(step, fullgraph=True, backend=backend, dynamic=dynamic)
    for tokens in (4, 6):
        call = case(Numbers(tokens, False), (1, tokens, 8), torch.float32, torch.bfloat16)
        ours, theirs = (arguments_of_step(call) for _ in range(2))
        for value, reference in zip(call_step(*ours), step(*theirs), strict=True):
            torch.testing.assert_close(value, reference)
        assert same_bits(ours[2], theirs[2])
        assert not same_bits(ours[2], call.h_prev[0])


def arguments_of_step(call: Case) -> list[Any]:
    return [given for place, given in enumerate(call.arguments()) if place not in (4, 5)]


@pytest.mark.skipif(DEVICE != "cpu", reason="the arguments are on the CPU")
def test_statistics_say_what_is_wrong_with_an_argument() -> None:
    stored, scale = torch.zeros(SHAPE), torch.ones(2, 5, 1)
    wrong: list[tuple[dict[int, object], type[Exception], str]] = [
        ({0: torch.zeros(())}, ValueError, r"h has shape \(\); expected at least one dimension"),
        ({0: stored.int()}, TypeError, "h is torch.int32; expected torch.float32 or torch.float16 or"),
        ({1: stored[..., :3]}, ValueError, r"x has shape \(2, 5, 3\); expected \(2, 5, 33\)"),
        ({1: stored.half()}, TypeError, "x is torch.float16; expected torch.float32"),
        ({1: stored.to("meta")}, ValueError, "x is on meta; expected cpu"),
        ({2: stored.double()}, TypeError, "h_prev is torch.float64; expected torch.float32 or"),
        ({2: torch.zeros(5, 2, 33).transpose(0, 1)}, ValueError, r"h_prev has strides \(33, 66, 1\); expected a"),
        ({2: stored.to(fused.FLOAT8[0])}, ValueError, "0 scales given for h_prev of torch.float8_e4m3fn; expected 1"),
        ({3: scale}, ValueError, "1 scales given for h_prev of torch.float32; expected 0"),
        ({4: stored.half()}, TypeError, "x_prev is torch.float16; expected torch.float32"),
        ({4: None, 5: scale}, ValueError, "x_prev_scale is given without x_prev"),
        ({6: [stored]}, ValueError, "anchors_p has 1 places; expected 2 or none"),
        ({6: [stored, stored.half()]}, TypeError, r"anchors_p\[1\] is torch.float16; expected torch.float32"),
        ({7: [scale]}, ValueError, r"1 scales given for anchors_p\[0\], anchors_p\[1\] of torch.float32; expected 0"),
        ({8: torch.tensor(3.0)}, TypeError, "anchors is torch.float32; expected torch.int64"),
        ({8: torch.tensor([3])}, ValueError, r"anchors has shape \(1,\); expected \(\)"),
    ]
    for changes, error, message in wrong:
        arguments = case(Numbers(0, False), SHAPE, torch.float32, torch.float32).arguments()
        with pytest.raises(error, match=message):
            # Not through the operator: tensors on two devices take one of them to the fake implementation.
            operators._check_statistics(*(changes.get(place, value) for place, value in enumerate(arguments)))  # type: ignore[arg-type]


@pytest.mark.skipif(DEVICE != "cpu", reason="the arguments are on the CPU")
def test_combine_says_what_is_wrong_with_an_argument() -> None:
    base, scale, dtype = torch.ones(2, 3), torch.ones(2, 1), torch.float32
    wrong: list[tuple[int, list[Tensor], Tensor, torch.dtype, type[Exception], str]] = [
        (0, [], torch.ones(0), dtype, ValueError, "0 residuals given; expected 1 to 3"),
        (4, [], torch.ones(4), dtype, ValueError, "4 residuals given; expected 1 to 3"),
        (
            1,
            [scale],
            torch.ones(1),
            dtype,
            ValueError,
            r"1 scales given for residuals\[0\] of torch.float32; expected 0",
        ),
        (2, [], torch.ones(3), dtype, ValueError, r"weights has shape \(3,\); expected \(2,\)"),
        (2, [], torch.ones(2, 1), dtype, ValueError, r"weights has shape \(2, 1\); expected \(2, 3\)"),
        (1, [], torch.ones(1).half(), dtype, TypeError, "weights is torch.float16; expected torch.float32"),
        (1, [], torch.ones(1), torch.int32, TypeError, "dtype is torch.int32; expected torch.float32 or"),
    ]
    for count, scales, weights, out, error, message in wrong:
        with pytest.raises(error, match=message):
            operators.combine(base, [base] * count, scales, weights, out)


def test_the_operators_check_their_arguments() -> None:
    arguments = list(case(Numbers(0, False), SHAPE, torch.float32, torch.float32).arguments())
    with pytest.raises(ValueError, match="anchors_p has 1 places"):
        torch.ops.dicache.statistics(*arguments[:6], arguments[6][:1], *arguments[7:])  # type: ignore[index]
