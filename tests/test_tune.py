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

from bench.versus import roster
from bench.versus.bars import DEEP_STEPS
from bench.versus.system import Installed
from bench.versus.tune import FINAL_SEEDS, NEAR, SEEDS, Tuner
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
    assert abs(best.deep - 15) <= NEAR
    assert len(best.psnrs) == len(best.deep_steps) == len(SEEDS) + len(FINAL_SEEDS)


def test_no_setting_is_made_up_where_none_has_so_few_deep_steps(tuner: Tuner) -> None:
    assert tuner.best((Fake(search=0.01, later=0.01, most=4 * STEPS),), 15) is None


def test_a_family_that_is_done_is_in_the_file_beside_the_others(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(workload: Workload, deep: int, ratios: Any) -> list[Any]:
        raise RuntimeError("interrupted")

    other = {"settings": {"untouched": {}}, "ratios": [1.0]}
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"other": other, WORKLOAD.key: other}))
    monkeypatch.setattr(roster, "TUNED", file)
    monkeypatch.setattr(roster, "calibrate", lambda workload, seeds: (0.5,))
    monkeypatch.setattr(roster, "FAMILIES", {"fake": lambda *_: [Fake(0.02, 0.02)], "failing": fail})
    with pytest.raises(RuntimeError, match="interrupted"):
        roster.tune(WORKLOAD)
    found = json.loads(file.read_text())
    assert found["other"] == other
    assert found[WORKLOAD.key]["ratios"] == [0.5]
    settings = found[WORKLOAD.key]["settings"]
    assert set(settings) == {"untouched", "fake"}
    assert set(settings["fake"]) == {str(target) for target in DEEP_STEPS}
    assert settings["fake"]["15"]["seeds"] == len(SEEDS) + len(FINAL_SEEDS)


def test_the_seeds_of_tuning_are_not_measured_on() -> None:
    assert not set(SEEDS) & set(FINAL_SEEDS)
    assert max(*SEEDS, *FINAL_SEEDS) < HELD_OUT
