"""The recorded facts can be read, and the inputs that they were recorded on can be formed again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.facts import FOLDER, first_block, fixture, smooth, tiny_model, turning, values

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
SAME = {"rtol": 1e-12, "atol": 1e-12}  # both in float64, some hundred roundings apart


def texts(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Each string of digits that says which steps were computed, with the run it is of."""
    for run in value if isinstance(value, list) else [value]:
        for key, of_run in run.items():
            if key.startswith("computed"):
                for text in of_run.values() if isinstance(of_run, dict) else [of_run]:
                    yield run, text
            elif isinstance(of_run, list) and of_run and isinstance(of_run[0], dict):
                yield from texts(of_run)


@pytest.mark.parametrize("name", NAMES)
def test_a_fixture_says_where_its_numbers_are_from_and_how_they_were_made(name: str) -> None:
    facts = fixture(name)
    assert {"method", "source", "paper", "recipe", "dtype"} <= set(facts)
    assert re.match(r"[\w-]+/[\w.-]+@[0-9a-f]{40}: \S|(diffusers|cache-dit) \d+\.\d+\.\d+: \S", facts["source"])
    assert all(math.isfinite(number) for number in _numbers(facts))


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_schedule_has_one_digit_a_step(name: str) -> None:
    facts = fixture(name)
    for run, text in texts({key: value for key, value in facts.items() if key != "computed"}):
        assert len(text) == run["steps"]
        assert set(text) <= {"0", "1"}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_has_a_paragraph_for_each_fixture(name: str) -> None:
    assert f"**`{name}.json`**" in (FOLDER / "README.md").read_text()


def test_taylorseer_is_its_recursion_on_the_inputs_formed_again() -> None:
    for run in fixture("taylorseer")["runs"]:
        factors: list[Tensor] = []
        at = 0
        for step, digit in enumerate(run["computed"]):
            if digit == "1":
                factors = _factors(factors, smooth(step), step - at, run["order"], early=step <= run["first"] - 2)
                at = step
            elif str(step) in run["estimates"]:
                terms = (factor * (step - at) ** i / math.factorial(i) for i, factor in enumerate(factors))
                estimate = sum(terms, torch.zeros(()))
                torch.testing.assert_close(estimate, values(run["estimates"][str(step)]), **SAME)


def test_the_first_block_cache_is_its_distance_to_the_last_computed_step() -> None:
    for run in fixture("fbcache")["runs"]:
        anchor = residual = torch.zeros(())
        for step, digit in enumerate(run["computed"]):
            x = turning(step, run["steps"])
            h = first_block(x)
            if step:
                distance = (h - x - anchor).abs().mean() / anchor.abs().mean()
                assert math.isclose(distance, run["distances"][step], rel_tol=1e-12)
                assert digit == ("1" if distance > run["threshold"] else "0")
            if digit == "1":
                anchor, residual = h - x, tiny_model(x) - h
            elif str(step) in run["outputs"]:
                torch.testing.assert_close(h + residual, values(run["outputs"][str(step)]), **SAME)


def _factors(old: list[Tensor], feature: Tensor, gap: int, order: int, *, early: bool) -> list[Tensor]:
    factors = [feature]
    for i in range(0 if early else min(order, len(old))):
        factors.append((factors[i] - old[i]) / gap)
    return factors


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, (int, float)):
        yield value
