"""Schedules from measured numbers, against the published codes and against all schedules."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from dicache_compile import Schedule
from dicache_compile.planning import by_lag, by_magnitude, by_sum, cheapest, growing
from tests.helpers.facts import fixture


def digits(schedule: Schedule, steps: int) -> str:
    return "".join(str(int(step in schedule.deep_steps(steps))) for step in range(steps))


@pytest.mark.parametrize("case", fixture("magcache")["runs"], ids=lambda one: f"{one['steps']}-{one['threshold']}")
def test_magnitudes_give_magcaches_steps(case: dict[str, Any]) -> None:
    steps = case["steps"]
    # The published FLUX code never reuses what is step 11 of 28.
    always = [step for step in range(steps) if round(step * 27 / (steps - 1)) == 11]
    ours = by_magnitude(
        case["ratios"], steps, threshold=case["threshold"], most=case["K"], retention=case["retention"], always=always
    )
    assert digits(ours, steps) == case["computed"]


@pytest.mark.parametrize("steps", [28, 30, 50])
def test_magnitudes_of_another_number_of_steps_are_the_nearest(steps: int) -> None:
    cases = {(case["steps"], case["threshold"]): case for case in fixture("magcache")["runs"]}
    published, case = cases[28, 0.24], cases[steps, 0.24]
    always = [step for step in range(steps) if round(step * 27 / (steps - 1)) == 11]
    ours = by_magnitude(published["ratios"], steps, threshold=0.24, most=5, retention=0.1, always=always)
    assert digits(ours, steps) == case["computed"]


def test_equal_magnitudes_reuse_as_many_as_may_be() -> None:
    ours = by_magnitude([1.0] * 20, 20, threshold=0.0, most=5, retention=0.1)
    assert digits(ours, 20) == "11" + "000001" * 3


@pytest.mark.parametrize(
    "case", fixture("smoothcache")["runs"], ids=lambda one: f"{one['threshold']}-{one['lookahead']}"
)
def test_lags_give_smoothcaches_steps(case: dict[str, Any]) -> None:
    (errors,) = [run["errors"] for run in fixture("smoothcache")["runs"] if "errors" in run]
    for component, expected in case["computed"].items():
        of_blocks = [by for name, by in errors.items() if name.endswith(component)]
        mean = [
            [sum(of[lag][step] for of in of_blocks) / len(of_blocks) for step in range(len(of_blocks[0][lag]))]
            for lag in range(case["lookahead"])
        ]
        assert digits(by_lag(mean, case["threshold"]), case["steps"]) == expected


@pytest.mark.parametrize("case", fixture("teacache_wan")["runs"], ids=lambda one: f"{one['model']}-{one['threshold']}")
def test_sums_give_teacaches_steps_on_wan(case: dict[str, Any]) -> None:
    steps, kept = case["steps"], case["ret_steps"]

    def embedding(step: int) -> list[float]:
        timestep = 1000 * (1 - step / steps)
        angle, size, offset = (0.006, 0.4, 1.0) if kept else (0.02, 1.0, 0.3)
        return [size * math.sin(angle * timestep * 0.97**j) + offset for j in range(64)]

    changes = [0.0]
    for before, now in itertools.pairwise(map(embedding, range(steps))):
        change = sum(abs(a - b) for a, b in zip(now, before, strict=True)) / sum(map(abs, before))
        changes.append(sum(c * change ** (4 - i) for i, c in enumerate(case["coefficients"])))
    # Counted in calls, two a step: the first ten, or the first and the last two.
    ours = by_sum(changes, case["threshold"], first=5 if kept else 1, last=0 if kept else 1)
    assert digits(ours, steps) == case["computed_cond"] == case["computed_uncond"]


def test_a_sum_is_full_at_its_threshold_and_starts_again() -> None:
    assert digits(by_sum([0, 1, 1, 1, 1, 1, 1, 1], 3.0), 8) == "10010011"
    assert digits(by_sum([0, 1, 1, 1, 1, 1, 1, 1], 3.0, first=2, last=0), 8) == "11001001"


def test_a_window_grows_with_each_deep_step_and_counts_by_its_whole_steps() -> None:
    assert digits(growing(12, first=2, window=1.0, growth=0.5), 12) == "11" + "1" + "1" + "01" + "01" + "001" + "0"
    assert digits(growing(9, first=0, window=3.0, growth=0.0), 9) == "001" * 3
    # 0.1 ten times is a whole step.
    assert digits(growing(12, first=0, window=1.0, growth=0.1), 12) == "1" * 10 + "01"


@pytest.mark.parametrize("seed", range(6))
def test_the_cheapest_schedule_is_that_of_all(seed: int) -> None:
    numbers = random.Random(seed)
    steps, deep = 9, numbers.randint(2, 6)
    most = numbers.choice([None, 3])
    costs = {(a, b): numbers.random() for a in range(steps) for b in range(a + 1, steps + 1)}

    def total(chosen: tuple[int, ...]) -> float:
        pairs = list(itertools.pairwise((*chosen, steps)))
        fits = most is None or all(end - start - 1 <= most for start, end in pairs)
        return sum(costs[pair] for pair in pairs) if fits else float("inf")

    all_of_them = [(0, *rest) for rest in itertools.combinations(range(1, steps), deep - 1)]
    ours = cheapest(lambda start, end: costs[start, end], steps, deep, most=most)
    assert total(ours.deep_steps(steps)) == pytest.approx(min(map(total, all_of_them)))
    assert len(ours.deep_steps(steps)) == deep


def test_more_deep_steps_never_cost_more_where_running_one_costs_nothing() -> None:
    def cost(start: int, end: int) -> float:
        return float((end - start - 1) ** 2 * (1 + start))

    def total(deep: int) -> float:
        steps = cheapest(cost, 20, deep).deep_steps(20)
        return sum(itertools.starmap(cost, itertools.pairwise((*steps, 20))))

    totals = [total(deep) for deep in range(1, 21)]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cheapest(lambda a, b: 0.0, 10, 11), "no schedule of 10 steps has 11 deep ones"),
        (lambda: cheapest(lambda a, b: 0.0, 10, 2, most=3), "at most 3 between them"),
        (lambda: cheapest(lambda a, b: float("nan"), 4, 2), "a step whose cost is not finite"),
        (lambda: by_lag([], 0.1), "a list for each lag, got none"),
        (lambda: by_lag([[0.0, 0.0], [0.0, 0.0]], 0.1), "expected 1 of lag 2 for 3 steps, got 2"),
        (lambda: by_magnitude([], 10, threshold=0.1, most=1, retention=0.1), "ratios: expected finite numbers"),
        (lambda: growing(10, window=0.5), "a window from 1 on that does not shrink, got window=0.5, growth=0.75"),
        (lambda: growing(10, growth=-1.0), "got window=2.0, growth=-1.0"),
        (lambda: by_sum([0.0, float("inf")], 1.0), "changes: expected finite numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
