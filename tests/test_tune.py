"""Tuning: the dial is turned to the asked number of deep steps, and all its seeds together choose a variant."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bench.versus import tune, tuned
from bench.versus.bars import DEEP_STEPS, SAME_QUALITY
from bench.versus.system import Installed
from bench.versus.tune import FEWEST, FINAL_SEEDS, FINALISTS, MARGIN, NEAR, SEEDS, Tuner, fewest
from bench.versus.tuned import Tuned
from bench.versus.uncached import Uncached
from bench.versus.workload import FLUX, HELD_OUT, STEPS, Workload


def sample(model: Any, prompts: Any, seed: int, steps: int) -> Tensor:
    return [model(seed=seed) for _ in range(steps)][-1]


WORKLOAD = dataclasses.replace(FLUX, load=nn.Identity, sample=sample)


@dataclass(frozen=True)
class Fake:
    """Deep as long as the step is below `most` / (1 + threshold), and off by `search` or `later`, by the seed."""

    name: ClassVar[str] = "fake"
    dial: ClassVar[str | None] = "threshold"
    search: float
    later: float
    threshold: float = 0.1
    most: int = STEPS
    compiled: bool = True

    def install(self, model: nn.Module, workload: Workload) -> Installed:
        assert not self.compiled, "tuning is eager"

        def call(name: str, step: int, inputs: dict[str, Any]) -> Tensor:
            return torch.full((1, 3, 2, 2), self.search if inputs["seed"] in SEEDS else self.later)

        return Installed(call, deep=lambda: [step < self.most / (1 + self.threshold) for step in range(STEPS)])


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch) -> Tuner:
    def install(self: Uncached, model: nn.Module, workload: Workload) -> Installed:
        return Installed(lambda name, step, inputs: torch.zeros(1, 3, 2, 2))

    monkeypatch.setattr(Uncached, "install", install)
    return Tuner(WORKLOAD)


def test_the_threshold_is_found_and_all_seeds_choose(tuner: Tuner) -> None:
    lucky, better = Fake(search=0.01, later=0.5), Fake(search=0.02, later=0.02)
    best = tuner.best((lucky, better), 15)
    assert best is not None
    assert best.system == dataclasses.replace(better, threshold=best.system.threshold)  # type: ignore[attr-defined]
    assert 0 <= 15 - best.deep <= NEAR
    assert len(best.psnrs) == len(best.deep_steps) == len(SEEDS) + len(FINAL_SEEDS)


@dataclass(frozen=True)
class Fixed(Fake):
    """Always the same steps."""

    dial: ClassVar[str | None] = None


def test_better_settings_with_more_deep_steps_than_asked_for_are_passed_over(tuner: Tuner) -> None:
    def run_of(steps: int, error: float) -> Fixed:
        return Fixed(error, error, threshold=0, most=steps)

    more = [run_of(16, 0.001 * (1 + place)) for place in range(2 * FINALISTS)]
    best = tuner.best((*more, run_of(15, 0.5)), 15)
    assert best is not None
    assert best.deep == 15


def test_mean_and_worst_both_choose(tuner: Tuner) -> None:
    @dataclass(frozen=True)
    class Uneven(Fixed):
        def install(self, model: nn.Module, workload: Workload) -> Installed:
            def call(name: str, step: int, inputs: dict[str, Any]) -> Tensor:
                return torch.full((1, 3, 2, 2), self.later if inputs["seed"] == FINAL_SEEDS[0] else self.search)

            return Installed(call, deep=lambda: [step < self.most for step in range(STEPS)])

    # The one has the better mean, the other by much more the better worst.
    uneven, even = Uneven(search=0.003, later=0.1, most=15), Uneven(search=0.006, later=0.01, most=15)
    best = tuner.best((uneven, even), 15)
    assert best is not None
    assert best.system == even


def test_a_schedule_moves_for_as_long_as_that_helps(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of what is tried: the search alone is deceived by the last one, and all seeds are not."""
    errors = {20: (0.3, 0.3), 21: (0.2, 0.2), 22: (0.1, 0.1), 23: (0.01, 0.4)}
    asked: list[float] = []

    @dataclass(frozen=True)
    class Schedule(Fixed):
        place: int = 20

        def install(self, model: nn.Module, workload: Workload) -> Installed:
            asked.append(self.place)
            return Fixed.install(self, model, workload)

    def at(place: int) -> Schedule:
        return Schedule(*errors[place], threshold=0, most=15, place=place)

    def near(system: Any) -> list[Any]:
        return [at(place) for place in (system.place - 1, system.place + 1) if place in errors]

    monkeypatch.setattr(tune, "moved", near)
    best = tuner.best((at(20),), 15)
    assert best is not None
    assert best.system.place == 22  # type: ignore[attr-defined]
    assert len(best.psnrs) == len(SEEDS) + len(FINAL_SEEDS)
    assert asked.count(23) == 2  # on the seeds of the search, and on the others


def test_no_setting_is_made_up_where_none_has_so_few_deep_steps(tuner: Tuner) -> None:
    assert tuner.best((Fake(search=0.01, later=0.01, most=4 * STEPS),), 15) is None


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuned, "FILE", tmp_path / "tuned.json")
    monkeypatch.setattr(tuned, "KINDS", {"Fake": Fake})
    monkeypatch.setattr(tune, "calibrate", lambda workload, seeds: (0.5,))
    return tuned.FILE


def test_what_is_found_is_in_the_file_at_once_beside_what_others_found(
    tuner: Tuner, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(workload: Workload, deep: int, ratios: Any) -> list[Any]:
        if deep == 7:
            raise RuntimeError("interrupted")
        return [Fake(0.02, 0.02)]

    other = {"settings": {"untouched": {}}, "ratios": [1.0]}
    file.write_text(json.dumps({"other": other, WORKLOAD.key: other}))
    monkeypatch.setattr(tune, "FAMILIES", {"failing": fail})
    with pytest.raises(RuntimeError, match="interrupted"):
        tune.tune(WORKLOAD, ["failing"])
    found = json.loads(file.read_text())
    assert found["other"] == other
    assert found[WORKLOAD.key]["ratios"] == [0.5]
    assert set(found[WORKLOAD.key]["settings"]["failing"]) == {"15 deep", "10 deep"}
    chosen = tuned.best(WORKLOAD, "failing", "15 deep")
    assert chosen is not None
    assert (type(chosen.system), chosen.seeds) == (Fake, len(SEEDS) + len(FINAL_SEEDS))
    with pytest.raises(ValueError, match="no setting of failing for the shapes FLUX and 7 deep"):
        tuned.best(WORKLOAD, "failing", "7 deep")


def test_a_family_without_a_setting_is_told_from_one_that_was_not_tuned(file: Path) -> None:
    tuned.store(WORKLOAD, "none", "7 deep", None, (0.5,))
    assert tuned.best(WORKLOAD, "none", "7 deep") is None
    assert tuned.ratios(WORKLOAD) == (0.5,)


@pytest.mark.parametrize("needed", range(FEWEST + 1, 19))
def test_the_fewest_deep_steps_of_the_same_quality_are_found(needed: int) -> None:
    asked: list[int] = []

    def best(target: int) -> Tuned | None:
        asked.append(target)
        return Tuned(Fake(0.1, 0.1), target, SAME_QUALITY + MARGIN + target - needed, 15)  # type: ignore[arg-type]

    known = {target: best(target) for target in DEEP_STEPS}
    asked.clear()
    found = fewest(best, known)
    assert (None if found is None else found.deep) == (needed if needed <= max(DEEP_STEPS) else None)
    assert len(asked) <= 3
    assert not set(asked) & set(DEEP_STEPS)


def test_the_seeds_of_tuning_are_not_measured_on() -> None:
    assert not set(SEEDS) & set(FINAL_SEEDS)
    assert max(*SEEDS, *FINAL_SEEDS) < HELD_OUT
