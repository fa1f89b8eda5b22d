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

from versus import tune, tuned
from versus.bars import DEEP_STEPS, SAME_QUALITY
from versus.sensitive import SEARCHED, sensitive
from versus.system import Installed
from versus.tune import (
    FEWEST,
    FINAL_SEEDS,
    FINAL_SENSITIVE,
    FINALISTS,
    MARGIN,
    NEAR,
    SEEDS,
    SENSITIVE,
    Tuner,
    fewest,
)
from versus.tuned import Tuned
from versus.uncached import Uncached
from versus.workload import FLUX, HELD_OUT, STEPS, WORKLOADS, Workload


def sample(model: Any, prompts: Any, seed: int, steps: int) -> Tensor:
    return [model(seed=seed) for _ in range(steps)][-1]


ALL_SEEDS = len(SEEDS) + len(FINAL_SEEDS) + SENSITIVE + FINAL_SENSITIVE
EASILY_MOVED = (1, *range(100, 140))  # the first is ordinary, too, and taken as such
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
    return Tuner(WORKLOAD, EASILY_MOVED)


def test_the_threshold_is_found_and_all_seeds_choose(tuner: Tuner) -> None:
    lucky, better = Fake(search=0.01, later=0.5), Fake(search=0.02, later=0.02)
    best = tuner.best((lucky, better), 15)
    assert best is not None
    assert best.system == dataclasses.replace(better, threshold=best.system.threshold)  # type: ignore[attr-defined]
    assert 0 <= 15 - best.deep <= NEAR
    assert len(best.psnrs) == len(best.deep_steps) == len(SEEDS) + len(FINAL_SEEDS)
    assert best.seeds == ALL_SEEDS


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


def test_sensitive_seeds_choose_by_the_worst_and_are_not_in_the_means(tuner: Tuner) -> None:
    @dataclass(frozen=True)
    class Uneven(Fixed):
        def install(self, model: nn.Module, workload: Workload) -> Installed:
            seeds: list[int] = []

            def call(name: str, step: int, inputs: dict[str, Any]) -> Tensor:
                seeds.append(inputs["seed"])
                return torch.full((1, 3, 2, 2), self.later if inputs["seed"] >= EASILY_MOVED[1] else self.search)

            deep = lambda: [step < (self.most if seeds[-1] < EASILY_MOVED[1] else 20) for step in range(STEPS)]  # noqa: E731
            return Installed(call, deep=deep)

    uneven, even = Uneven(search=0.003, later=0.1, most=15), Uneven(search=0.006, later=0.01, most=15)
    best = tuner.best((uneven, even), 15)
    assert best is not None
    assert best.system == even
    assert best.deep == 15
    assert best.merit == best.psnr + min(best.sensitive) < best.psnr + min(best.psnrs)
    assert len(set(best.sensitive)) == 1, "a seed that is ordinary was run as a sensitive one"


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
    monkeypatch.setattr(tune, "sensitive", lambda workload: EASILY_MOVED)
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
    assert (type(chosen.system), chosen.seeds) == (Fake, ALL_SEEDS)
    assert tuned.sensitive(WORKLOAD) == EASILY_MOVED[: tuned.KEPT]
    with pytest.raises(ValueError, match="no setting of failing for the shapes FLUX and 7 deep"):
        tuned.best(WORKLOAD, "failing", "7 deep")


def test_a_family_without_a_setting_is_told_from_one_that_was_not_tuned(file: Path) -> None:
    assert tuned.sensitive(WORKLOAD) == ()
    tuned.store(WORKLOAD, "none", "7 deep", None, (0.5,), (9, 8))
    assert tuned.best(WORKLOAD, "none", "7 deep") is None
    assert tuned.ratios(WORKLOAD) == (0.5,)
    assert tuned.sensitive(WORKLOAD) == (9, 8)


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
    assert max(*SEEDS, *FINAL_SEEDS, *SEARCHED) < HELD_OUT
    for workload in WORKLOADS:
        assert set(tuned.sensitive(workload)) <= set(SEARCHED)


def test_the_seeds_that_a_disturbance_changes_most_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {3: 1.0, 5: 0.1, 8: 10.0}
    disturbed: list[tuple[str, int]] = []

    def picture(model: Any, prompts: Any, seed: int, steps: int) -> Tensor:
        """The first step's input, which the seed answers to more or less; the others' are without effect."""
        x = torch.full((1, 3, 8, 8), 0.5)
        first, *later = [model(hidden_states=x, seed=seed) for _ in range(steps)]
        assert all(output.equal(answers[seed] * x) for output in later)
        return first

    def install(self: Uncached, model: nn.Module, workload: Workload) -> Installed:
        def call(stream: str, step: int, inputs: dict[str, Any]) -> Tensor:
            if not inputs["hidden_states"].eq(0.5).all():
                disturbed.append((stream, step))
            return answers[inputs["seed"]] * inputs["hidden_states"]

        return Installed(call)

    monkeypatch.setattr(Uncached, "install", install)
    workload = dataclasses.replace(FLUX, load=nn.Identity, sample=picture)
    assert sensitive(workload, answers) == (8, 3, 5)
    assert disturbed == 3 * [("cond", 0)]
