"""The comparison: every seed by every system, each begins in its turn, and one that fails gets a row that says so."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from versus.compare import Entrant, compare
from versus.system import Installed
from versus.uncached import Uncached
from versus.workload import FLUX, HELD_OUT, Workload

LOG: list[tuple[int, str]] = []  # (seed, system) in the order in which they ran


def sample(model: Any, prompts: Any, seed: int, steps: int) -> Tensor:
    return model(seed=seed)


WORKLOAD = dataclasses.replace(FLUX, load=nn.Identity, sample=sample)


@dataclass(frozen=True)
class Fake:
    source: ClassVar[str] = "here"
    recipe: ClassVar[str] = "none"
    dial: ClassVar[str | None] = None
    name: str
    fails_at: int = -1
    compiled: bool = True
    label: str = field(default="default")

    def why_not(self, workload: Workload) -> None:
        return None

    def install(self, model: nn.Module, workload: Workload) -> Installed:
        return Installed(lambda name, step, inputs: run(self.name, inputs["seed"], self.fails_at))


def run(name: str, seed: int, fails_at: int = -1) -> Tensor:
    if seed == fails_at:
        raise RuntimeError("out of luck\nand more")
    LOG.append((seed, name))
    return torch.full((1, 3, 16, 16), 0.1 * (name != "uncached"))


@pytest.fixture(autouse=True)
def _uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    LOG.clear()
    uncached = Installed(lambda name, step, inputs: run("uncached", inputs["seed"]))
    monkeypatch.setattr(Uncached, "install", lambda self, model, workload: uncached)


def entrants(*systems: Fake) -> list[Entrant]:
    return [Entrant(system, "own") for system in systems]  # type: ignore[arg-type]


def test_each_seed_is_run_by_all_and_another_begins() -> None:
    rows = compare("own", WORKLOAD, entrants(Fake("a"), Fake("b")), 3)
    measured = [name for seed, name in LOG if seed >= HELD_OUT]
    assert measured == ["uncached", "a", "b", "a", "b", "uncached", "b", "uncached", "a"]
    assert [row.system for row in rows] == ["uncached", "a", "b"]
    assert len({row.run for row in rows}) == 1
    for row in rows:
        assert row.run
        assert row.figures["generations"] == len(row.samples["seconds"]) == 3
    assert rows[1].figures["PSNR mean"] == pytest.approx(26.02, abs=0.01)  # 0.1 off, of a range of 2


def test_a_system_that_fails_late_gets_a_row_that_says_so_and_the_others_go_on() -> None:
    rows = compare("own", WORKLOAD, entrants(Fake("a", fails_at=HELD_OUT + 1), Fake("b")), 3)
    assert rows[1].figures == {}
    assert rows[1].why == f"RuntimeError: out of luck (seed {HELD_OUT + 1})"
    assert rows[2].figures["generations"] == 3


def test_guards_once_is_put_around_what_is_asked_for_after_it_has_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(installed: Installed) -> Installed:
        assert [name for _, name in LOG].count("a") == 4  # of both entrants, each as often as all are warmed up
        return Installed(lambda name, step, inputs: run("a, once", inputs["seed"]))

    monkeypatch.setattr("versus.guards.once", once)
    both = [Entrant(Fake("a"), "schedule"), Entrant(Fake("a"), "once", guards_once=True)]  # type: ignore[arg-type]
    rows = compare("sweep", WORKLOAD, both, 1, quality=False)
    assert all(row.figures for row in rows)
    assert sorted(name for seed, name in LOG if seed == HELD_OUT) == ["a", "a, once", "uncached"]
    assert (HELD_OUT - 1, "a, once") in LOG  # so that one that cannot run so is known before anything is measured


def test_a_system_that_does_another_thing_with_guards_once_is_not_measured_so(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Installed(lambda name, step, inputs: torch.full((1, 3, 16, 16), 0.2))
    monkeypatch.setattr("versus.guards.once", lambda installed: other)
    both = [Entrant(Fake("a"), "schedule"), Entrant(Fake("a"), "once", guards_once=True)]  # type: ignore[arg-type]
    _, checked, once = compare("sweep", WORKLOAD, both, 1, quality=False)
    assert checked.figures
    assert once.figures == {}
    assert once.why == "RuntimeError: with its guards checked once a generation it gives another result"


def test_a_tuned_setting_says_whose_best_it_is_and_on_how_many_seeds() -> None:
    _, row = compare("equal", WORKLOAD, [Entrant(Fake("a"), "15 deep", "a family", 15)], 1)  # type: ignore[arg-type]
    assert (row.family, row.tuned_on, row.role) == ("a family", 15, "15 deep")
    assert "a family" in row.key
