"""The named numbers of published caches: each file says where it is from, and has the stated form."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from dicache_compile import published as package
from dicache_compile.published import published
from tests.helpers.facts import fixture

NAMES = sorted(path.stem for path in Path(package.__file__).parent.glob("*.json"))
SOURCE = r"[\w-]+/[\w.-]+@[0-9a-f]{40}|diffusers \d+\.\d+\.\d+: \S+"
PLACE = r"[\w./-]+\.py:\d+(-\d+)?"


@pytest.mark.parametrize("name", NAMES)
def test_each_file_names_its_source_and_the_place_of_each_number(name: str) -> None:
    numbers = published(name)
    assert set(numbers) == {"method", "source", "paper", "about", "models"}
    assert re.fullmatch(SOURCE, numbers["source"])
    assert re.fullmatch(r"arXiv \d{4}\.\d{5}", numbers["paper"])
    for model in numbers["models"].values():
        assert re.fullmatch(PLACE, model["at"])


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'teacachee'; there are adacache, .*teacache"):
        published("teacachee")


def test_teacache_has_polynomials_of_degree_four_and_thresholds_from_slow_to_fast() -> None:
    for model in published("teacache")["models"].values():
        assert len(model["coefficients"]) == 5
        assert model["thresholds"] == sorted(model["thresholds"])
        assert model["first"] >= 1 or model["first_ratio"] > 0


def test_magcache_has_a_ratio_for_each_step_and_each_branch() -> None:
    for model in published("magcache")["models"].values():
        assert model["ratios"][0] == 1  # the first step has none before it
        assert all(0.4 < ratio < 2 for ratio in model["ratios"])
        assert len(model.get("unconditional", model["ratios"])) == len(model["ratios"])
        assert model["comparison"] in ("<", "<=")


def test_the_ratios_of_flux_are_those_that_its_recorded_decisions_were_made_with() -> None:
    runs = (run for run in fixture("magcache")["runs"] if run["steps"] == 28)
    assert next(runs)["ratios"] == published("magcache")["models"]["flux-dev"]["ratios"]


def test_adacache_reuses_for_longer_where_less_changes() -> None:
    for model in published("adacache")["models"].values():
        distances, intervals = zip(*model["codebook"], strict=True)
        assert list(distances) == sorted(distances)
        assert list(intervals) == sorted(intervals, reverse=True)


def test_profilingdit_has_ranges_of_blocks_that_do_not_touch() -> None:
    model = published("profilingdit")["models"]["hunyuan-video"]
    ranges = model["ranges"]
    assert all(first <= last < model["blocks"] for first, last in ranges)
    assert all(left[1] + 1 < right[0] for left, right in pairwise(ranges))
    assert model["computed"][0] == model["first"]
    assert model["computed"][-1] < model["steps"]


@pytest.mark.parametrize("name", ["pab", "fastercache"])
def test_a_window_of_timesteps_has_its_lower_end_first(name: str) -> None:
    model = published(name)["models"]["defaults"]
    windows = [window for key, window in model.items() if key.endswith("window")]
    assert windows
    assert all(low < high for low, high in windows)
