"""Gates and estimators by themselves, against float64 and against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dicache_compile.estimators import DCTA, FeedbackDCTA, SecondOrderDCTA
from dicache_compile.gates import ProbeError
from dicache_compile.kernels import clipped_ratio, extrapolate, mean_abs_difference, relative_l1
from dicache_compile.policy import settings_of

SHAPE = (2, 5, 7)


def tensors(seed: int, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(count)]


def told(policy: object) -> dict[str, Tensor]:
    """What the host tells a gate or an estimator, as these find it in their state."""
    return {setting.name: torch.tensor(setting.value, dtype=torch.float32) for setting in settings_of(policy)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@given(seed=st.integers(0, 1000))
def test_relative_l1_errs_by_no_more_than_a_float32_sum(dtype: torch.dtype, seed: int) -> None:
    a, b = tensors(seed, 2, dtype)
    exact = (a.double() - b.double()).abs().mean() / b.double().abs().mean()
    # A sum of n terms errs by at most n eps, each of two sums and the division once.
    bound = (2 * a.numel() + 2) * torch.finfo(torch.float32).eps * exact
    assert (relative_l1(a, b).double() - exact).abs() <= bound


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_relative_l1_is_a_scale_free_distance(seed: int, scale: float) -> None:
    a, b = tensors(seed, 2)
    assert relative_l1(a, a) == 0
    assert relative_l1(a, b) > 0
    torch.testing.assert_close(relative_l1(scale * a, scale * b), relative_l1(a, b))


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [
        (0.0, 0.0, 1.0),
        (1.0, 0.0, 1.0),
        (1.2, 1.0, 1.2),
        (9.0, 1.0, 1.5),
        (0.1, 1.0, 1.0),
        (math.inf, 1.0, 1.5),
        (math.nan, 1.0, 1.0),
        (1.0, math.nan, 1.0),
        (math.nan, math.nan, 1.0),
        (1.0, math.inf, 1.0),
    ],
)
def test_clipped_ratio_is_always_a_number_in_the_range(numerator: float, denominator: float, expected: float) -> None:
    result = clipped_ratio(torch.tensor(numerator), torch.tensor(denominator), 1.0, 1.5)
    assert result.item() == pytest.approx(expected)


def test_extrapolate_masks_an_older_anchor_that_does_not_exist() -> None:
    base, newest = tensors(0, 2)
    unused = torch.full(SHAPE, float("nan"))
    result = extrapolate(base, newest, unused, torch.tensor(float("nan")), torch.tensor(False))
    assert torch.equal(result, base + newest)


def dcta_state(seed: int = 0) -> dict[str, Tensor]:
    r1, r2, p1, p2 = tensors(seed, 4)
    return {"r1": r1, "r2": r2, "p1": p1, "p2": p2, "anchor_gap": mean_abs_difference(p1, p2)}


def weigh(p: Tensor, state: dict[str, Tensor], low: float = 0.0, high: float = 10.0, anchors: int = 2) -> float:
    x = torch.zeros(SHAPE)
    estimator = DCTA((low, high))
    return estimator.weigh(x, p, torch.tensor(anchors), state | told(estimator)).item()


def test_dcta_gamma_is_one_at_the_newest_anchor_and_low_at_the_older() -> None:
    state = dcta_state()
    assert weigh(state["p1"], state) == pytest.approx(1)
    assert weigh(state["p2"], state, low=0.25) == 0.25


@given(share=st.floats(0, 4), seed=st.integers(0, 100))
def test_dcta_is_exact_where_probe_and_residual_move_along_one_line(share: float, seed: int) -> None:
    state = dcta_state(seed)
    state["r1"], state["r2"] = 2 * state["p1"] + 1, 2 * state["p2"] + 1
    p = state["p2"] + share * (state["p1"] - state["p2"])
    state |= told(DCTA((0.0, 10.0)))
    gamma = DCTA((0.0, 10.0)).weigh(torch.zeros(SHAPE), p, torch.tensor(2), state)
    assert gamma.item() == pytest.approx(share, rel=1e-4, abs=1e-4)
    estimate = DCTA((0.0, 10.0)).estimate(torch.zeros(SHAPE), gamma, torch.tensor(2), state)
    torch.testing.assert_close(estimate, 2 * p + 1, rtol=1e-4, atol=1e-3)


def test_dcta_gamma_does_not_see_the_direction() -> None:
    """Pinned: the norm ratio of the paper gives 0.6 for a step of -0.6 (methods, test 32h)."""
    state = dcta_state()
    backwards = state["p2"] - 0.6 * (state["p1"] - state["p2"])
    assert weigh(backwards, state) == pytest.approx(0.6, rel=1e-5)


def test_dcta_with_one_anchor_has_no_gamma_and_reuses_it() -> None:
    state = dcta_state()
    state |= told(DCTA((1.0, 1.5)))
    gamma = DCTA((1.0, 1.5)).weigh(torch.zeros(SHAPE), state["p1"], torch.tensor(1), state)
    assert gamma.isnan()
    estimate = DCTA((1.0, 1.5)).estimate(torch.ones(SHAPE), gamma, torch.tensor(1), state)
    assert torch.equal(estimate, 1 + state["r1"])


def test_dcta_anchors_hold_both_residuals_and_the_gap_to_the_one_before() -> None:
    state = dcta_state()
    x, h, y = tensors(9, 3)
    new = DCTA((1.0, 1.5)).anchor(x, h, y, state)
    assert torch.equal(new["r"], y - x)
    assert torch.equal(new["p"], h - x)
    torch.testing.assert_close(new["anchor_gap"], ((h - x) - state["p1"]).abs().mean())


@given(share=st.floats(0, 3), back=st.floats(0.3, 3.9), seed=st.integers(0, 100))
def test_second_order_without_damping_is_exact_where_the_residual_is_a_parabola_of_the_probe(
    share: float, back: float, seed: int
) -> None:
    start, way, a, b, c = (tensor.double() for tensor in tensors(seed, 5))

    def probe(at: float) -> Tensor:
        return start + at * way

    def residual(at: float) -> Tensor:
        return a + at * b + at * at * c

    state = {f"p{age}": probe(at) for age, at in ((1, 1.0), (2, 0.0), (3, -back))}
    state |= {f"r{age}": residual(at) for age, at in ((1, 1.0), (2, 0.0), (3, -back))}
    state |= {"anchor_gap": way.abs().mean().float(), "gap_ratio": torch.tensor(back)}
    exact = SecondOrderDCTA((0.0, 10.0), damping=0.0)
    x, anchors = torch.zeros(SHAPE), torch.tensor(3)
    gamma = exact.weigh(x, probe(share), anchors, state | told(exact))
    # Coefficients of the three float32 residuals are at most 4 * 7 / 0.3.
    torch.testing.assert_close(exact.estimate(x, gamma, anchors, state).double(), residual(share), rtol=1e-4, atol=2e-3)
    line = DCTA((0.0, 10.0)).estimate(x, gamma, anchors, state)
    damped = SecondOrderDCTA((0.0, 10.0)).estimate(x, gamma, anchors, state)
    kept = 1 / (1 + (2 * max(share - 1, 0) / (1 + back)) ** 2)
    bend = exact.estimate(x, gamma, anchors, state) - line
    torch.testing.assert_close(damped, line + kept * bend, rtol=1e-4, atol=2e-3)


def test_a_great_damping_leaves_the_line_and_one_below_zero_or_infinite_is_an_error() -> None:
    state = dcta_state() | {f"{name}3": tensor for name, tensor in zip("rp", tensors(5, 2), strict=True)}
    state["gap_ratio"] = torch.tensor(1.5)
    x, gamma, anchors = torch.zeros(SHAPE), torch.tensor(1.4), torch.tensor(3)
    line = DCTA((1.0, 2.0)).estimate(x, gamma, anchors, state)
    torch.testing.assert_close(SecondOrderDCTA((1.0, 2.0), damping=1e9).estimate(x, gamma, anchors, state), line)
    for damping in (-0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="damping: expected a finite number from 0 on"):
            SecondOrderDCTA((1.0, 2.0), damping=damping)


@pytest.mark.parametrize("anchors", [1, 2])
def test_second_order_with_fewer_anchors_is_first_order_and_masks_what_does_not_exist(anchors: int) -> None:
    state = dcta_state() | {f"{name}3": torch.full(SHAPE, float("nan")) for name in "rp"}
    state["gap_ratio"] = torch.tensor(float("nan"))
    x, p, count = torch.zeros(SHAPE), tensors(7, 1)[0], torch.tensor(anchors)
    first, second = DCTA((1.0, 2.0)), SecondOrderDCTA((1.0, 2.0))
    state |= told(second)
    gamma = second.weigh(x, p, count, state)
    torch.testing.assert_close(gamma, first.weigh(x, p, count, state), equal_nan=True)
    torch.testing.assert_close(second.estimate(x, gamma, count, state), first.estimate(x, gamma, count, state))
    torch.testing.assert_close(second.check(x, p, gamma, count, state), first.check(x, p, gamma, count, state))


def test_second_order_anchors_hold_the_gap_before_over_the_new_one() -> None:
    state = dcta_state()
    x, h, y = tensors(9, 3)
    new = SecondOrderDCTA((1.0, 1.5)).anchor(x, h, y, state)
    gap = ((h - x) - state["p1"]).abs().mean()
    torch.testing.assert_close(new["gap_ratio"], state["anchor_gap"] / gap)
    still = SecondOrderDCTA((1.0, 1.5)).anchor(torch.zeros(SHAPE), state["p1"], y, state)
    assert still["gap_ratio"] == 1  # where the probe has not moved there is no ratio


@given(
    errors=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30),
    small=st.floats(0, 2),
    more=st.floats(0, 2),
    limit=st.integers(0, 5),
)
def test_a_higher_threshold_never_runs_more_steps_deep_on_a_fixed_trajectory(
    errors: list[float], small: float, more: float, limit: int
) -> None:
    def deep_steps(threshold: float) -> int:
        gate, state, skipped, deep = ProbeError(threshold), {"accumulated": torch.zeros(())}, 0, 0
        for error in errors:
            within, compared = gate.judge(torch.tensor(error), state | told(gate))
            reuse = within & torch.tensor(skipped < limit)
            state = gate.settle(compared, reuse, state)
            skipped = skipped + 1 if reuse else 0
            deep += not reuse
        return deep

    assert deep_steps(small + more) <= deep_steps(small)


@pytest.mark.parametrize(("comparison", "at_threshold"), [("<", False), ("<=", True)])
def test_the_comparison_decides_at_the_threshold_itself(comparison: str, at_threshold: bool) -> None:
    gate = ProbeError(0.5, comparison=comparison)  # type: ignore[arg-type]
    assert gate.judge(torch.tensor(0.5), {"accumulated": torch.zeros(()), **told(gate)})[0].item() is at_threshold


def test_nan_and_infinity_are_never_within() -> None:
    gate = ProbeError(math.inf, comparison="<=")
    state = {"accumulated": torch.zeros(()), **told(gate)}
    assert not gate.judge(torch.tensor(math.nan), state)[0]
    assert not gate.judge(torch.tensor(math.inf), state)[0]


@given(reused=st.integers(1, 6), back=st.floats(0.3, 3.9), lead=st.floats(0.5, 3), seed=st.integers(0, 100))
def test_feedback_owes_what_a_run_of_estimates_lacked(reused: int, back: float, lead: float, seed: int) -> None:
    """Exact where the residual is a parabola of the input and the reused steps are evenly spaced."""
    start, way, a, b, c = (tensor.double() for tensor in tensors(seed, 5))

    def x_at(at: float) -> Tensor:
        return (start + at * way).float()

    def residual(at: float) -> Tensor:
        return (a + at * b + at * at * c).float()

    # Anchors at -lead * back and 0, then evenly spaced reused steps and the next anchor at `lead`.
    older = -lead * back
    state = {"r1": residual(0), "r2": residual(older), "p1": x_at(0), "p2": x_at(older), "owed": torch.zeros(SHAPE)}
    state |= {"anchor_gap": mean_abs_difference(x_at(0), x_at(older))}
    state |= dict.fromkeys(("reused", "reached", "known"), torch.tensor(0.0))
    estimator, anchors = FeedbackDCTA((0.0, 1e3), "input"), torch.tensor(2)
    state |= told(estimator)
    lacked = torch.zeros(SHAPE).double()
    for step in range(1, reused + 1):
        x = x_at(lead * step / (reused + 1))
        gamma = estimator.weigh(x, x, anchors, state)
        state |= estimator.follow(gamma, torch.tensor(True), anchors, state)
        stand_in = estimator.estimate(x, gamma, anchors, state)
        lacked += residual(lead * step / (reused + 1)).double() - (stand_in - x)
    state |= estimator.follow(estimator.weigh(x, x, anchors, state), torch.tensor(False), anchors, state)
    x = x_at(lead)
    new = estimator.anchor(x, x, x + residual(lead), state)
    # Sums of up to six residuals of up to 4 (1 + 12 + 144), and one difference over a gap ratio of 0.3.
    torch.testing.assert_close(new["owed"].double(), lacked, rtol=1e-3, atol=0.02)
    assert new["reused"] == new["reached"] == 0


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_feedback_gives_back_all_that_is_owed_and_keeps_the_rest(share: float) -> None:
    state = {**dcta_state(), "owed": tensors(4, 1)[0], "reached": torch.tensor(0.0), "reused": torch.tensor(0.0)}
    estimator, line, anchors = FeedbackDCTA((1.0, 2.0), share=share), DCTA((1.0, 2.0)), torch.tensor(2)
    x, gamma, given = torch.zeros(SHAPE), torch.tensor(1.0), torch.zeros(SHAPE)
    for _ in range(3):
        state |= estimator.follow(gamma, torch.tensor(True), anchors, state)
        given += estimator.estimate(x, gamma, anchors, state) - line.estimate(x, gamma, anchors, state)
    # All residuals alike, so that the run lacked nothing.
    same = state["r1"]
    new = estimator.anchor(x, x, same, {**state, "r2": same, "reached": torch.tensor(0.0)})
    torch.testing.assert_close(new["owed"], (1 - share) ** 3 * state["owed"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(given + new["owed"], state["owed"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("known", [0, 1])
def test_feedback_masks_what_an_earlier_generation_left(known: int) -> None:
    stale = torch.full(SHAPE, float("nan"))
    state = {**dcta_state(), "r2": stale, "owed": stale} | dict.fromkeys(("reused", "reached"), torch.tensor(2.0))
    if known == 0:
        state["r1"] = stale
    x, h, y = tensors(9, 3)
    estimator, anchors = FeedbackDCTA((1.0, 2.0)), torch.tensor(known)
    state |= estimator.follow(torch.tensor(float("nan")), torch.tensor(False), anchors, state)
    owed = estimator.anchor(x, h, y, state)["owed"]
    # With one anchor two steps stood still at it, and should have been a third and two thirds of the way.
    expected = torch.zeros(SHAPE) if known == 0 else (1 / 3 + 2 / 3) * (y - x - state["r1"])
    torch.testing.assert_close(owed, expected)


def test_feedback_shares_are_above_0_and_up_to_1() -> None:
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="share: expected a number above 0 and up to 1"):
            FeedbackDCTA((1.0, 2.0), share=share)
