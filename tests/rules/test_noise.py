"""What becomes of an anchor's noise: in the sum that a sampler makes of its model's outputs, and in one estimate."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from dicache_compile.estimators.weights import lagrange, taylor

STEPS, PERIOD = 30, 3


def counts(order: int) -> list[float]:
    """How often each anchor of `Schedule.every(PERIOD)` counts in the sum of all steps, with so many more in a line."""
    found: dict[int, float] = defaultdict(float)
    for step in range(STEPS):
        newest = step - step % PERIOD
        anchors = [newest - age * PERIOD for age in range(order + 1) if newest >= age * PERIOD]
        gaps = [torch.tensor(float(PERIOD))] * (len(anchors) - 1)
        weights = (taylor if order < 2 else lagrange)(torch.tensor(float(step - newest)), gaps)
        for anchor, weight in zip(anchors, weights, strict=True):
            found[anchor] += float(weight)
    return [found[anchor] for anchor in sorted(found)]


@pytest.mark.parametrize("order", [1, 2])
def test_over_a_generation_an_extrapolated_anchor_counts_as_often_as_a_reused_one(order: int) -> None:
    """What goes beyond an anchor in its own interval is taken off again in the next: not so at both ends alone."""
    reused, extrapolated = counts(0), counts(order)
    assert reused == [PERIOD] * (STEPS // PERIOD)
    assert extrapolated[order:-order] == pytest.approx(reused[order:-order], abs=1e-5)
    assert sum(extrapolated) == pytest.approx(STEPS, abs=1e-4)
    assert extrapolated[-1] > PERIOD + 0.5


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("g", [0.3, 1.0])
def test_the_damped_gamma_has_the_least_error_of_all_in_one_estimate(noise: float, g: float) -> None:
    """In the terms of `bench.noise_aware`: anchors R2 = n2 and R1 = D + n1, and the truth D + g D."""
    count = 200_000
    generator = torch.Generator().manual_seed(0)
    way, first, second = (torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(3))
    newest, older = way + noise**0.5 * first, noise**0.5 * second

    def error(gamma: float) -> float:
        return float((older + gamma * (newest - older) - (1 + g) * way).square().mean())

    share = 2 * noise / float((newest - older).square().mean())
    damped = (1 - share) * (1 + g) + share / 2
    # The mean over `count` samples is off by about 1 / sqrt(count) of itself, the best gamma by as much.
    best = min(error(damped + change / 50) for change in range(-50, 51))
    assert error(damped) <= best * (1 + 4 / count**0.5)
    assert error(damped) <= min(error(1 + g), error(1.0)) * (1 + 4 / count**0.5)
    if noise >= 1:
        assert error(damped) < 0.9 * error(1 + g)


def test_the_noise_of_anchors_is_measured_and_of_a_straight_way_there_is_none() -> None:
    noise_aware = pytest.importorskip("bench.noise_aware")
    from dicache_compile.rules import Seen

    estimator = noise_aware.NoiseAwareDCTA((1.0, 2.0))
    generator = torch.Generator().manual_seed(0)
    way, place = torch.randn(2, 1, 2000, 100, generator=generator)
    for sigma in (0.0, 0.3):
        residual = [step * way + sigma * torch.randn(way.shape, generator=generator) for step in (1, 2, 3)]
        state = {"r1": residual[1], "r2": residual[0], "p1": 2 * place, "p2": 1 * place}
        state["anchor_gap"] = place.abs().mean()
        zero = torch.zeros_like(way)
        number = torch.zeros(())
        seen = Seen(zero, 3 * place, state, number, number, number + 2, number, y=residual[2])
        new = estimator.anchor(seen)
        size = residual[2].square().mean()
        # Each mean is over 200,000 products: off by about 1 / sqrt(200,000) of mean way^2, in three terms over 3.
        assert float(new["noise"] * size) == pytest.approx(sigma**2, abs=4 * 200_000**-0.5)
