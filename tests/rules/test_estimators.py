"""The estimators of the published caches, by what their equations say."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dicache_compile.estimators import (
    AdamsBashforth,
    BandSplit,
    ChannelAffine,
    Extrapolated,
    FoCa,
    Hermite,
    HyCa,
    LearnedTable,
    MeanVelocity,
    Newton,
    ProjectedDCTA,
    Reuse,
    Spectrum,
    StepAffine,
    Taylor,
)
from dicache_compile.estimators.adams_bashforth import binomial
from dicache_compile.estimators.hyca import SOLVERS
from dicache_compile.estimators.weights import differences, lagrange, taylor, three
from dicache_compile.kernels.bands import low_of_grid, low_of_sequence
from dicache_compile.rules import Estimator
from tests.helpers.replay import replay

DEEP = (0, 1, 2, 5, 9, 10, 15)  # gaps of one step and of several
STEPS = 20
SHAPE = (1, 3, 4)
GAPS = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def polynomial(degree: int, seed: int = 0) -> Callable[[int], Tensor]:
    """A trajectory of that degree whose values stay near 1 over the steps."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn((degree + 1, *SHAPE), generator=generator, dtype=torch.float64)
    return lambda step: sum((factors[i] * (step / STEPS) ** i for i in range(degree + 1)), torch.zeros(())).float()


def off_by(estimator: Estimator, truth: Callable[[int], Tensor], deep: tuple[int, ...] = DEEP, after: int = 2) -> float:
    """The largest error after the step `after`."""
    estimates = replay(estimator, truth, deep, STEPS)
    return max((value - truth(step)).abs().max().item() for step, value in estimates.items() if step > after)


# What float32 loses: weights of at most 100 in sum, times values of about 1, each rounded a few times by 2**-24.
ROUNDING = 100 * 8 * 2.0**-24

DEGREES: list[tuple[Estimator, int]] = [
    (Reuse(), 0),
    (Taylor(0), 0),
    (Taylor(1), 1),
    (Taylor(2), 1),
    (Taylor(3), 1),
    (Newton(1), 1),
    (Newton(2), 2),
    (Newton(3), 3),
    (Hermite(1), 0),
    (Hermite(2), 0),
    (Hermite(1, scale=math.sqrt(0.5)), 1),
    (FoCa(), 1),
    (HyCa(("taylor", "ab2", "am", "rk2"), (0, 1, 2, 3)), 1),
    (HyCa(("bdf2",), (0, 0, 0, 0)), 0),
    (AdamsBashforth(1), 0),
    (Spectrum(share=0.0), 1),
    (Extrapolated(), 0),
    (Extrapolated(1.0), 1),
    (BandSplit(), 0),
    (BandSplit(grid=(3, 1)), 0),
]


@pytest.mark.parametrize(("estimator", "degree"), DEGREES, ids=lambda value: repr(value))
def test_an_estimator_is_exact_up_to_its_degree_and_no_further(estimator: Estimator, degree: int) -> None:
    # The first anchors are one step apart; before there are enough of them an estimator has a lower degree.
    assert off_by(estimator, polynomial(degree), after=5) < ROUNDING
    assert off_by(estimator, polynomial(degree + 1), after=5) > 100 * ROUNDING


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_is_exact_one_gap_ahead_of_equal_gaps(order: int) -> None:
    deep = tuple(step for step in range(STEPS) if step % 6 < 5)  # the sixth is one step ahead of five equal gaps
    assert off_by(AdamsBashforth(order), polynomial(order - 1), deep, after=5) < ROUNDING
    assert off_by(AdamsBashforth(order), polynomial(order), deep, after=5) > ROUNDING
    assert sum(binomial(order)) == 1


# Of two bands one stays, so a single token may go either way.
@pytest.mark.parametrize("estimator", [e for e, _ in DEGREES if not isinstance(e, BandSplit)], ids=repr)
def test_an_estimate_goes_forward_and_a_missing_anchor_does_no_harm(estimator: Estimator) -> None:
    line = polynomial(1)
    for deep in ((0,), (0, 1), (0, 1, 2)):
        estimates = replay(estimator, line, deep, 5)
        for step, estimate in estimates.items():
            assert estimate.isfinite().all()
            forward = (estimate - line(deep[-1])) * (line(step) - line(deep[-1]))
            assert (forward >= -ROUNDING).all(), "the estimate lies on the other side of the newest anchor"


def test_the_published_series_is_off_on_a_parabola_as_its_recursion_says() -> None:
    # On t^2 with anchors h apart, k steps ahead, the second order errs by -k h; the third's differences vanish.
    deep, h = (0, 5, 10, 15), 5
    for order in (2, 3):
        estimates = replay(Taylor(order), lambda step: torch.tensor([float(step * step)]), deep, STEPS)
        for k in range(1, 5):
            assert estimates[15 + k].item() == pytest.approx((15 + k) ** 2 - k * h, rel=1e-6)


@settings(deadline=None)
@given(elapsed=st.integers(1, 9), gaps=GAPS)
def test_the_weights_are_those_of_exact_arithmetic(elapsed: int, gaps: list[int]) -> None:
    time, between = torch.tensor(float(elapsed), dtype=torch.float64), [torch.tensor(float(g)).double() for g in gaps]
    places = [Fraction(0)]
    for gap in gaps:
        places.append(places[-1] - gap)
    through = [
        math.prod((Fraction(elapsed) - other) / (place - other) for i, other in enumerate(places) if i != j)
        for j, place in enumerate(places)
    ]
    assert [float(w) for w in lagrange(time, between)] == pytest.approx([float(w) for w in through], rel=1e-12)

    # TaylorSeer's recursion on the unit vectors.
    rows = [[Fraction(i == j) for i in range(len(places))] for j in range(len(places))]
    series, order = [Fraction(0)] * len(places), 0
    while rows:
        series = [
            s + row * Fraction(elapsed) ** order / math.factorial(order) for s, row in zip(series, rows[0], strict=True)
        ]
        rows = [
            [(new - old) / gap for new, old in zip(a, b, strict=True)]
            for a, b, gap in zip(rows, rows[1:], gaps, strict=False)
        ]
        order += 1
    assert [float(w) for w in taylor(time, between)] == pytest.approx([float(w) for w in series], rel=1e-12, abs=1e-12)
    assert len(differences(between)) == len(places)


def test_every_solver_has_the_papers_weights_one_step_ahead() -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    paper = {
        "taylor": (2, -1, 0),
        "ab2": (5 / 2, -2, 1 / 2),
        "bdf2": (4 / 3, -1 / 3, 0),
        "am": (55 / 24, -19 / 12, 7 / 24),
        "rk2": (3 / 2, 0, -1 / 2),
    }
    assert set(SOLVERS) == set(paper)
    for name, expected in paper.items():
        weights = three(one, [one, one], *SOLVERS[name](one, [one, one]))
        assert [float(weight) for weight in weights] == pytest.approx(expected, abs=1e-15)


def test_each_channel_has_its_own_solver() -> None:
    truth, deep = polynomial(3), (0, 2, 4)
    mixed = replay(HyCa(("taylor", "rk2", "bdf2"), (2, 0, 1, 0)), truth, deep, 8)
    for step, estimate in mixed.items():
        for channel, name in enumerate(("bdf2", "taylor", "rk2", "taylor")):
            alone = replay(HyCa((name,), (0, 0, 0, 0)), truth, deep, 8)[step]
            assert torch.equal(estimate[..., channel], alone[..., channel])


def test_foca_is_the_rolling_recursion_of_its_equations() -> None:
    truth = polynomial(3)
    estimates = replay(FoCa(), truth, DEEP, STEPS)
    history, slope, anchors = dict[int, Tensor](), torch.zeros(SHAPE), list[int]()
    for step in range(STEPS):
        if step in DEEP:
            history[step] = truth(step).double()
            anchors.append(step)
            if len(anchors) > 1:
                slope = (history[step] - history[anchors[-2]]) / (step - anchors[-2])
        else:
            # Equation 7 in 6 gives the slope of the last step, and equation 8 takes the mean of both.
            history[step] = history[step - 1] + (slope + history[step - 1] - history[step - 2]) / 2
            torch.testing.assert_close(estimates[step], history[step].float(), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("grid", [None, (4, 4)])
def test_a_low_band_stays_and_a_high_one_goes_on(grid: tuple[int, int] | None) -> None:
    checkered = torch.tensor([(-1.0) ** (i + j) for i in range(4) for j in range(4)])
    striped = torch.tensor([1.0, -1.0] * 8)
    high = (striped if grid is None else checkered)[None, :, None]
    if grid is not None:  # no single cosine: take its low part, the mean, away
        high = high - high.mean()
    estimator = BandSplit(1, math.sqrt(0.5), grid=grid)
    estimates = replay(estimator, lambda step: (1 + high) * step, (0, 2), 5)
    for step in (3, 4):
        torch.testing.assert_close(estimates[step], 2 + high * step, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.35, 1.0])
def test_a_low_band_is_that_of_all_cosines_or_waves(cutoff: float) -> None:
    value = torch.randn((2, 20, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    waves = torch.fft.fft(value, dim=-2)
    frequency = torch.fft.fftfreq(20, dtype=torch.float64).abs()[:, None]
    low = torch.fft.ifft(waves * (frequency <= cutoff * 0.5 + 1e-12), dim=-2).real
    torch.testing.assert_close(low_of_sequence(value, cutoff).double(), low, rtol=0, atol=ROUNDING)

    def cosines(size: int) -> Tensor:
        order, place = torch.arange(size).double()[:, None], torch.arange(size).double()
        rows = torch.cos(math.pi * order * (2 * place + 1) / (2 * size))
        return rows / rows.norm(dim=1, keepdim=True)

    down, across = cosines(4), cosines(5)
    radius = ((torch.arange(4) / 3) ** 2)[:, None] + (torch.arange(5) / 4) ** 2
    orders = torch.einsum("uh,vw,bhwc->buvc", down, across, value.reshape(2, 4, 5, 3))
    orders = orders * (radius.double() <= 2 * cutoff**2 + 1e-6)[..., None]
    low = torch.einsum("uh,vw,buvc->bhwc", down, across, orders).reshape(2, 20, 3)
    torch.testing.assert_close(low_of_grid(value, (4, 5), cutoff).double(), low, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("degree", "ridge", "share"), [(4, 0.1, 0.5), (2, 0.01, 1.0), (0, 1.0, 1.0), (8, 0.1, 0.7)])
def test_a_fit_that_is_corrected_by_each_anchor_is_that_to_all_of_them(degree: int, ridge: float, share: float) -> None:
    truth = polynomial(3)
    estimates = replay(Spectrum(degree, ridge, share, span=STEPS), truth, DEEP, STEPS)

    def chebyshev(steps: list[int]) -> Tensor:
        angle = torch.acos(2 * torch.tensor(steps, dtype=torch.float64) / STEPS - 1)
        return torch.cos(angle[:, None] * torch.arange(degree + 1))

    for step, estimate in estimates.items():
        anchors = [deep for deep in DEEP if deep < step]
        newest, older = anchors[-1], anchors[-2]
        values = torch.stack([truth(anchor).double().flatten() for anchor in anchors])
        basis = chebyshev(anchors)
        squares = basis.T @ basis + ridge * torch.eye(degree + 1, dtype=torch.float64)
        fit = (chebyshev([step]) @ torch.linalg.solve(squares, basis.T @ values)).reshape(SHAPE)
        line = truth(newest) + (step - newest) / (newest - older) * (truth(newest) - truth(older))
        # Rounding is magnified by the spread, which is at most 1 / ridge.
        bound = {"rtol": 0.0, "atol": ROUNDING / min(ridge, 1.0)}
        torch.testing.assert_close(estimate.double(), share * fit + (1 - share) * line.double(), **bound)


def test_a_regression_draws_its_result_to_zero_by_its_ridge() -> None:
    drawn = [
        replay(Spectrum(4, ridge, 1.0), lambda step: torch.ones(SHAPE), (0, 1, 2), 4)[3] for ridge in (1, 0.1, 0.01)
    ]
    most, some, little = (float(one.mean()) for one in drawn)
    assert 0 < most < some < little < 1


def test_an_extrapolation_goes_on_from_its_own_estimates() -> None:
    estimates = replay(Extrapolated((0.0, 0.0, 0.5, 0.25)), lambda step: torch.tensor([8.0 * step]), (0, 1), 5)
    # 8 + 0.5 (8 - 0), then 12 + 0.25 (12 - 8), and so on with the last weight.
    assert [estimates[step].item() for step in (2, 3, 4)] == [12.0, 13.0, 13.25]
    assert replay(Extrapolated(), lambda step: torch.tensor([8.0]), (0,), 2)[1].item() == 8.0


def test_a_mean_velocity_is_exact_on_a_straight_way_and_its_correction_is_half_of_a_bend() -> None:
    sigmas = tuple(1 - step / STEPS for step in range(STEPS + 1))
    start, straight = torch.tensor([3.0, -2.0]), torch.tensor([1.0, 4.0])
    estimator = MeanVelocity(sigmas, (2,) * 10 + (3,) * (STEPS - 10))
    ours = replay(estimator, lambda step: straight, DEEP, STEPS, x=lambda step: start + sigmas[step] * straight)
    assert all((one - straight).abs().max() < ROUNDING for one in ours.values())

    # v = 2 s goes by x = s^2: the mean of two places is v half way, so the slope is 1 where it is 2.
    bent = replay(
        MeanVelocity(sigmas, 3),
        lambda step: torch.tensor([2 * sigmas[step]]),
        range(5),
        6,
        x=lambda step: torch.tensor([sigmas[step] ** 2]),
    )
    assert bent[5].item() == pytest.approx(2 * sigmas[4] - 1 / STEPS, abs=ROUNDING)


@pytest.mark.parametrize("times", ["timesteps", tuple(math.exp(-step / 9) for step in range(STEPS))])
def test_time_may_be_the_timestep_or_a_number_for_each_step(times: Any) -> None:
    def sigma(step: int) -> float:
        return math.exp(-step / 9)

    def parabola(step: int) -> Tensor:
        return torch.tensor([1.0, 2.0]) + 3 * sigma(step) + sigma(step) ** 2

    estimates = replay(Newton(2, times), parabola, DEEP, STEPS, time=sigma)
    for step, estimate in estimates.items():
        torch.testing.assert_close(estimate, parabola(step), rtol=0, atol=6 * ROUNDING)
    in_steps = replay(Newton(2), parabola, DEEP, STEPS)
    assert max((in_steps[step] - parabola(step)).abs().max() for step in in_steps) > 100 * ROUNDING


def test_a_series_has_as_many_terms_as_the_published_code_when_it_begins() -> None:
    truth = polynomial(3)
    first = replay(Taylor(2, first=3), truth, (0, 1, 2), 6)
    torch.testing.assert_close(first[4], truth(2) + 2 * (truth(2) - truth(1)))  # a line after three steps
    again = replay(Taylor(2, first=3), truth, (0, 1, 2, 5), 8)
    later = replay(Taylor(2), truth, (0, 1, 2, 5), 8)
    torch.testing.assert_close(again[7], later[7])  # all terms one anchor later


def test_a_series_may_be_of_what_was_added_to_the_probe() -> None:
    def h(step: int) -> Tensor:
        return torch.full(SHAPE, math.sin(step))

    found = replay(Taylor(1, base="h"), lambda step: h(step) + step / 2, DEEP, STEPS, h=h)
    for step, value in found.items():
        if step > 1:
            torch.testing.assert_close(value, h(step) + step / 2, rtol=0.0, atol=STEPS * ROUNDING)


def test_a_projected_gamma_has_the_sign_of_the_way() -> None:
    p = {0: 1.0, 1: 3.0}  # anchors
    for place, expected in ((3.4, 1.2), (2.0, 0.5), (0.5, 0.2), (9.0, 1.8)):
        values = {**p, 2: place}
        estimates = replay(
            ProjectedDCTA((0.2, 1.8)), lambda step: torch.full(SHAPE, 10.0 * step), (0, 1), 3,
            h=lambda step, values=values: torch.full(SHAPE, values[step]),
        )  # fmt: skip
        torch.testing.assert_close(estimates[2], torch.full(SHAPE, 10 * expected), rtol=1e-6, atol=0)


def test_a_scale_and_a_shift_for_each_step_or_channel() -> None:
    x = polynomial(1, seed=1)
    truth = polynomial(2)
    scale, shift = tuple(1 - step / 100 for step in range(4)), tuple(step / 10 for step in range(4))
    estimates = replay(StepAffine(scale, shift), truth, (0, 1), 6, x=x)
    for step, estimate in estimates.items():
        at = min(step, 3)
        torch.testing.assert_close(estimate, scale[at] * (x(step) + truth(1) - x(1)) + shift[at])
    of_channel = replay(ChannelAffine(scale, shift), truth, (0, 1), 3, x=x)[2]
    expected = x(2) + torch.tensor(scale) * (truth(1) - x(1)) + torch.tensor(shift)
    torch.testing.assert_close(of_channel, expected)


def test_a_table_has_weights_of_its_own_for_each_step() -> None:
    x, truth = polynomial(2, seed=1), polynomial(2)
    rows = tuple((1 + step / 10, -step / 20) for step in range(8))
    inputs = tuple((step / 7, -step / 9) for step in range(8))
    estimates = replay(LearnedTable((0, 2), rows, inputs), truth, (0, 2), 10, x=x)
    r1, r2 = (truth(step) - x(step) for step in (2, 0))
    for step in range(3, 10):
        (a, b), (c, d) = rows[min(step, 7)], inputs[min(step, 7)]
        expected = x(step) + a * r1 + b * r2 + c * (x(step) - x(2)) + d * (x(2) - x(0))
        torch.testing.assert_close(estimates[step], expected, rtol=0, atol=ROUNDING)


def test_a_table_has_weights_of_its_own_for_each_cluster_of_channels() -> None:
    x, truth, of_channel = polynomial(2, seed=1), polynomial(2), (1, 0, 1, 2)
    tables = [
        (tuple((n + step / 10, -step / 20) for step in range(8)), tuple((step / (7 + n),) for step in range(8)))
        for n in range(3)
    ]
    alone = [replay(LearnedTable((0, 2), *one), truth, (0, 2), 8, x=x) for one in tables]
    residuals, inputs = (tuple(sum(rows, ()) for rows in zip(*of, strict=True)) for of in zip(*tables, strict=True))
    together = replay(LearnedTable((0, 2), residuals, inputs, of_channel), truth, (0, 2), 8, x=x)
    for step, estimate in together.items():
        for channel, cluster in enumerate(of_channel):
            one, other = estimate[..., channel], alone[cluster][step][..., channel]
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Taylor(4), "expected 1 to 4 anchors, got 5"),
        (lambda: Newton(-1), "expected 1 to 4 anchors, got 0"),
        (lambda: Taylor(1, base="y"), "base: expected 'x' or 'h', got 'y'"),  # type: ignore[arg-type]
        (lambda: Taylor(1, first=0), "first: expected a number of steps from 1 on, got 0"),
        (lambda: Newton(1, times="sigma"), "times: expected 'steps', 'timesteps' or a tuple of numbers"),
        (lambda: Newton(1, times=(1.0,)), "a finite number for each step, two at least"),
        (lambda: Newton(1, times=(1.0, math.nan)), "a finite number for each step"),
        (lambda: Newton(1, times=(1.0, 0.5, 0.7)), "all rise or all fall"),
        (lambda: Newton(1, times=(1.0, 0.5, 0.5)), "all rise or all fall"),
        (lambda: AdamsBashforth(5), "order: expected a number of anchors from 1 to 4, got 5"),
        (lambda: Hermite(1, scale=0.0), "scale: expected a number above 0 and up to 1, got 0.0"),
        (lambda: HyCa(("euler",), (0,)), "solvers: expected some of taylor, ab2, bdf2, am, rk2, got 'euler'"),
        (lambda: HyCa(("taylor",), ()), "a place of one for each channel, got none"),
        (lambda: HyCa(("taylor",), (0, 1)), "of_channel: expected places from 0 to 0, got 1"),
        (lambda: BandSplit(cutoff=1.1), "cutoff: expected a number from 0 to 1, got 1.1"),
        (lambda: BandSplit(grid=(4, 0)), r"grid: expected \(rows, columns\), whole numbers from 1 on, got \(4, 0\)"),
        (lambda: BandSplit(grid=(4,)), r"grid: expected \(rows, columns\)"),  # type: ignore[arg-type]
        (lambda: Extrapolated(math.nan), "weight: expected a finite number, or one for each step, got nan"),
        (lambda: Extrapolated(()), "weight: expected a finite number, or one for each step"),
        (lambda: MeanVelocity((1.0, 0.5, 0.7)), "sigmas: expected numbers that fall from step to step"),
        (lambda: MeanVelocity((1.0,)), "sigmas: expected finite numbers, one for each step and one more"),
        (lambda: MeanVelocity((1.0, 0.5), 7), "spans: expected numbers of steps from 1 to 6, got 7"),
        (lambda: MeanVelocity((1.0, 0.5, 0.0), (1,)), "spans: expected one for each of 2 steps, got 1"),
        (lambda: Spectrum(9), "degree: expected a number from 0 to 8, got 9"),
        (lambda: Spectrum(ridge=0.0), "ridge: expected a finite number above 0, got 0.0"),
        (lambda: Spectrum(span=math.inf), "span: expected a finite number above 0, got inf"),
        (lambda: Spectrum(share=1.5), "share: expected a number from 0 to 1, got 1.5"),
        (lambda: LearnedTable((0,), ()), "residuals: expected rows of 1 to 4 weights, all of one length"),
        (lambda: LearnedTable((0,), ((1.0,) * 5,)), r"rows of 1 to 4 weights, all of one length, got \[5\]"),
        (lambda: LearnedTable((0,), ((1.0,), (1.0, 2.0))), r"all of one length, got \[1, 2\]"),
        (lambda: LearnedTable((0,), ((math.nan,),)), "residuals: expected finite weights"),
        (
            lambda: LearnedTable((0,), ((1.0,),), (), (0, 1)),
            "rows of 1 to 4 weights for each of 2 clusters, all of one",
        ),
        (lambda: LearnedTable((0,), ((1.0,),), (), (0, -1)), "of_channel: expected a cluster for each channel"),
        (lambda: LearnedTable((0,), ((1.0,),), ((1.0,), (1.0,))), "inputs: expected 1 rows as residuals, got 2"),
        (lambda: StepAffine((1.0,), ()), "as many of both, got 1 and 0"),
        (lambda: ChannelAffine((math.inf,), (0.0,)), "expected a finite scale and shift for each channel"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Estimator], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
