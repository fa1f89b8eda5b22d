"""Gates and estimators by themselves, against float64 and against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dicache_compile.estimators import DCTA, FeedbackDCTA, SecondOrderDCTA
from dicache_compile.gates import ProbeError
from dicache_compile.kernels import clipped_ratio, combination, extrapolate, mean_abs_difference, relative_l1
from dicache_compile.rules import Decider, Estimator, Seen

SHAPE = (2, 5, 7)


def tensors(seed: int, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(count)]


def told(policy: Decider | Estimator) -> dict[str, Tensor]:
    """What the host tells a gate or an estimator, as these find it in their state."""
    return {setting.name: torch.tensor(setting.value, dtype=torch.float32) for setting in policy.settings()}


def seen(x: Tensor, state: dict[str, Tensor], h: Tensor | None = None, *, anchors: int = 2, **more: Any) -> Seen:
    """What a method sees of a carried value."""
    counts = {"index": torch.tensor(5), "time": torch.tensor(0.5), "since": torch.tensor(0), **more}
    return Seen(x=x, h=x if h is None else h, state=state, anchors=torch.tensor(anchors), **counts)


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


def gamma_at(p: Tensor, state: dict[str, Tensor], low: float = 0.0, high: float = 10.0, anchors: int = 2) -> float:
    estimator = DCTA((low, high))
    return estimator.aid(seen(torch.zeros(SHAPE), state | told(estimator), p, anchors=anchors)).item()


def test_dcta_gamma_is_one_at_the_newest_anchor_and_low_at_the_older() -> None:
    state = dcta_state()
    assert gamma_at(state["p1"], state) == pytest.approx(1)
    assert gamma_at(state["p2"], state, low=0.25) == 0.25


@given(share=st.floats(0, 4), seed=st.integers(0, 100))
def test_dcta_is_exact_where_probe_and_residual_move_along_one_line(share: float, seed: int) -> None:
    state = dcta_state(seed)
    state["r1"], state["r2"] = 2 * state["p1"] + 1, 2 * state["p2"] + 1
    p = state["p2"] + share * (state["p1"] - state["p2"])
    state |= told(DCTA((0.0, 10.0)))
    shown = seen(torch.zeros(SHAPE), state, p)
    gamma = DCTA((0.0, 10.0)).aid(shown)
    assert gamma.item() == pytest.approx(share, rel=1e-4, abs=1e-4)
    estimate = DCTA((0.0, 10.0)).estimate(replace(shown, aid=gamma))
    torch.testing.assert_close(estimate, 2 * p + 1, rtol=1e-4, atol=1e-3)


def test_dcta_gamma_does_not_see_the_direction() -> None:
    """Pinned: the norm ratio of the paper gives 0.6 for a step of -0.6 (methods, test 32h)."""
    state = dcta_state()
    backwards = state["p2"] - 0.6 * (state["p1"] - state["p2"])
    assert gamma_at(backwards, state) == pytest.approx(0.6, rel=1e-5)


def test_dcta_with_one_anchor_has_no_gamma_and_reuses_it() -> None:
    state = dcta_state()
    state |= told(DCTA((1.0, 1.5)))
    gamma = DCTA((1.0, 1.5)).aid(seen(torch.zeros(SHAPE), state, state["p1"], anchors=1))
    assert gamma.isnan()
    estimate = DCTA((1.0, 1.5)).estimate(seen(torch.ones(SHAPE), state, anchors=1, aid=gamma))
    assert torch.equal(estimate, 1 + state["r1"])


def test_dcta_anchors_hold_both_residuals_and_the_gap_to_the_one_before() -> None:
    state = dcta_state()
    x, h, y = tensors(9, 3)
    new = DCTA((1.0, 1.5)).anchor(seen(x, state, h, y=y))
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
    shown = seen(torch.zeros(SHAPE), state | told(exact), probe(share), anchors=3)
    shown = replace(shown, aid=exact.aid(shown))
    # Coefficients of the three float32 residuals are at most 4 * 7 / 0.3.
    torch.testing.assert_close(exact.estimate(shown).double(), residual(share), rtol=1e-4, atol=2e-3)
    line = DCTA((0.0, 10.0)).estimate(shown)
    damped = SecondOrderDCTA((0.0, 10.0)).estimate(shown)
    kept = 1 / (1 + (2 * max(share - 1, 0) / (1 + back)) ** 2)
    bend = exact.estimate(shown) - line
    torch.testing.assert_close(damped, line + kept * bend, rtol=1e-4, atol=2e-3)


def test_a_great_damping_leaves_the_line_and_one_below_zero_or_infinite_is_an_error() -> None:
    state = dcta_state() | {f"{name}3": tensor for name, tensor in zip("rp", tensors(5, 2), strict=True)}
    state["gap_ratio"] = torch.tensor(1.5)
    shown = seen(torch.zeros(SHAPE), state, anchors=3, aid=torch.tensor(1.4))
    line = DCTA((1.0, 2.0)).estimate(shown)
    torch.testing.assert_close(SecondOrderDCTA((1.0, 2.0), damping=1e9).estimate(shown), line)
    for damping in (-0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="damping: expected a finite number from 0 on"):
            SecondOrderDCTA((1.0, 2.0), damping=damping)


@pytest.mark.parametrize("anchors", [1, 2])
def test_second_order_with_fewer_anchors_is_first_order_and_masks_what_does_not_exist(anchors: int) -> None:
    state = dcta_state() | {f"{name}3": torch.full(SHAPE, float("nan")) for name in "rp"}
    state["gap_ratio"] = torch.tensor(float("nan"))
    first, second = DCTA((1.0, 2.0)), SecondOrderDCTA((1.0, 2.0))
    state |= told(second)
    shown = seen(torch.zeros(SHAPE), state, tensors(7, 1)[0], anchors=anchors)
    torch.testing.assert_close(second.aid(shown), first.aid(shown), equal_nan=True)
    shown = replace(shown, aid=second.aid(shown))
    torch.testing.assert_close(second.estimate(shown), first.estimate(shown))
    torch.testing.assert_close(second.check(shown), first.check(shown))


def test_second_order_anchors_hold_the_gap_before_over_the_new_one() -> None:
    state = dcta_state()
    x, h, y = tensors(9, 3)
    new = SecondOrderDCTA((1.0, 1.5)).anchor(seen(x, state, h, y=y))
    gap = ((h - x) - state["p1"]).abs().mean()
    torch.testing.assert_close(new["gap_ratio"], state["anchor_gap"] / gap)
    still = SecondOrderDCTA((1.0, 1.5)).anchor(seen(torch.zeros(SHAPE), state, state["p1"], y=y))
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
            shown = seen(torch.zeros(SHAPE), state | told(gate), error=torch.tensor(error))
            within, compared = gate.judge(shown)
            reuse = within & torch.tensor(skipped < limit)
            state = gate.settle(replace(shown, error=compared, reused=reuse))
            skipped = skipped + 1 if reuse else 0
            deep += not reuse
        return deep

    assert deep_steps(small + more) <= deep_steps(small)


@pytest.mark.parametrize(("comparison", "at_threshold"), [("<", False), ("<=", True)])
def test_the_comparison_decides_at_the_threshold_itself(comparison: str, at_threshold: bool) -> None:
    gate = ProbeError(0.5, comparison=comparison)  # type: ignore[arg-type]
    state = {"accumulated": torch.zeros(()), **told(gate)}
    assert gate.judge(seen(torch.zeros(SHAPE), state, error=torch.tensor(0.5)))[0].item() is at_threshold


def test_nan_and_infinity_are_never_within() -> None:
    gate = ProbeError(math.inf, comparison="<=")
    state = {"accumulated": torch.zeros(()), **told(gate)}
    for error in (math.nan, math.inf):
        assert not gate.judge(seen(torch.zeros(SHAPE), state, error=torch.tensor(error)))[0]


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
    estimator = FeedbackDCTA((0.0, 1e3), "input")
    state |= {"reached": torch.tensor(0.0), **told(estimator)}
    lacked = torch.zeros(SHAPE).double()
    for step in range(1, reused + 1):
        x = x_at(lead * step / (reused + 1))
        shown = seen(x, state, since=torch.tensor(step - 1))
        shown = replace(shown, aid=estimator.aid(shown))
        state |= estimator.follow(replace(shown, reused=torch.tensor(True)))
        stand_in = estimator.estimate(replace(shown, state=state))
        lacked += residual(lead * step / (reused + 1)).double() - (stand_in - x)
    x = x_at(lead)
    new = estimator.anchor(seen(x, state, since=torch.tensor(reused), y=x + residual(lead)))
    # Sums of up to six residuals of up to 4 (1 + 12 + 144), and one difference over a gap ratio of 0.3.
    torch.testing.assert_close(new["owed"].double(), lacked, rtol=1e-3, atol=0.02)
    assert new["reached"] == 0


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_feedback_gives_back_all_that_is_owed_and_keeps_the_rest(share: float) -> None:
    state = {**dcta_state(), "owed": tensors(4, 1)[0], "reached": torch.tensor(0.0)}
    estimator, line = FeedbackDCTA((1.0, 2.0), share=share), DCTA((1.0, 2.0))
    x, given = torch.zeros(SHAPE), torch.zeros(SHAPE)
    for step in range(3):
        shown = seen(x, state, since=torch.tensor(step), aid=torch.tensor(1.0))
        given += estimator.estimate(shown) - line.estimate(shown)
    # All residuals alike, so that the run lacked nothing.
    same = state["r1"]
    new = estimator.anchor(seen(x, {**state, "r2": same}, since=torch.tensor(3), y=same))
    torch.testing.assert_close(new["owed"], (1 - share) ** 3 * state["owed"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(given + new["owed"], state["owed"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("known", [0, 1])
def test_feedback_masks_what_an_earlier_generation_left(known: int) -> None:
    stale = torch.full(SHAPE, float("nan"))
    state = {**dcta_state(), "r2": stale, "owed": stale, "reached": torch.tensor(0.0)}
    if known == 0:
        state["r1"] = stale
    x, h, y = tensors(9, 3)
    shown = seen(x, state, h, anchors=known, since=torch.tensor(2 if known else 0), y=y)
    owed = FeedbackDCTA((1.0, 2.0)).anchor(shown)["owed"]
    # With one anchor two steps stood still at it, and should have been a third and two thirds of the way.
    expected = torch.zeros(SHAPE) if known == 0 else (1 / 3 + 2 / 3) * (y - x - state["r1"])
    torch.testing.assert_close(owed, expected)


def test_feedback_shares_are_above_0_and_up_to_1() -> None:
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="share: expected a number above 0 and up to 1"):
            FeedbackDCTA((1.0, 2.0), share=share)


def test_a_combination_masks_what_has_a_weight_of_0_and_takes_a_weight_a_channel() -> None:
    base, one, two = tensors(3, 3)
    missing = torch.full(SHAPE, float("nan"))
    assert torch.equal(combination(base, [one, missing], [torch.tensor(1.0), torch.tensor(0.0)]), base + one)
    assert torch.equal(combination(base, [one, missing], [1.0, 0.0]), base + one)
    weights = torch.linspace(0, 1, SHAPE[-1])
    torch.testing.assert_close(
        combination(base, [one, two], [weights, 1 - weights]), base + weights * one + (1 - weights) * two
    )
