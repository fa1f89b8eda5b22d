"""The published methods as presets: as many deep steps as asked for, and ours is theirs; on tiny models, eagerly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from torch import nn

from bench.clips import model as clips
from bench.shapes import model as shapes
from dicache_compile import Schedule
from dicache_compile.presets import METHODS as PRESETS
from versus import found, levels, methods_page
from versus.calibrated import Calibrated
from versus.levels import SAME, Levels, role
from versus.methods import LEVELS, METHODS, OUTSIDE, Preset, spaced
from versus.peers import LIMIT, NOTES
from versus.rows import Row, row
from versus.traced import Traced
from versus.workload import STEPS, Workload
from versus.workload import WORKLOADS as TRAINED

from .test_versus import SMALL, WORKLOADS, each_workload

ANYWHERE = {name: method for name, method in METHODS.items() if name != "tune"}  # which is of one trained model


def deeper(workload: Workload) -> Workload:
    """With blocks enough for the methods that take ranges of them."""

    def load() -> nn.Module:
        if workload.family == "flux":
            config = {**shapes.CONFIG, **SMALL, "num_layers": 2, "num_single_layers": 4}
            return diffusers.FluxTransformer2DModel(**config).eval().requires_grad_(False)
        config = {**clips.CONFIG, **SMALL, "ffn_dim": 64, "num_layers": 6}
        return diffusers.WanTransformer3DModel(**config).eval().requires_grad_(False)

    return dataclasses.replace(workload, load=load)


@pytest.fixture(autouse=True)
def _dials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "FILE", tmp_path / "dials.json")


def test_every_preset_has_a_row_or_a_reason() -> None:
    rows = {name.split()[0] for name in METHODS} | {"flux", "wan"}  # which are `dicache`
    assert set(PRESETS) <= rows | set(OUTSIDE)
    assert not set(OUTSIDE) & rows


@pytest.mark.parametrize("deep", LEVELS)
@pytest.mark.parametrize("first", [1, 2, 3, 5, 8])
def test_equal_gaps_follow_the_first_steps(first: int, deep: int) -> None:
    steps = spaced(first, deep).deep_steps(STEPS)
    kept = min(first, deep - 2)
    gaps = [after - before for before, after in zip(steps[kept - 1 :], (*steps[kept:], STEPS), strict=True)]
    assert len(steps) == deep
    assert steps[:kept] == tuple(range(kept))
    assert max(gaps) - min(gaps) <= 1


@each_workload
def test_schedules_have_exactly_as_many_deep_steps_as_asked_for(workload: Workload) -> None:
    known = Calibrated(deeper(workload))
    for name, method in ANYWHERE.items():
        if method.dial is None and method.levels == LEVELS:
            for level in LEVELS:
                schedule = method.make(known, level).config.schedule
                assert len(schedule.deep_steps(STEPS)) == level, (name, level, schedule)


@pytest.mark.exhaustive
@each_workload
def test_every_method_runs_with_as_many_deep_steps_as_its_schedule_says(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "TUNING", range(1))
    monkeypatch.setattr(levels, "TRIALS", 2)
    every = Levels(deeper(workload), 1)
    for name, method in ANYWHERE.items():
        for one in every.rows(name):
            assert not one.why, one
            assert 1 <= one.figures["expected speed-up"] <= STEPS
            if method.dial is None and method.levels == LEVELS:
                assert role(round(one.figures["deep steps"])) == one.role


@pytest.mark.exhaustive
@each_workload
def test_ours_is_theirs_on_the_same_schedule(workload: Workload) -> None:
    found = Levels(workload, 2).same()
    ours, theirs = found[::2], found[1::2]
    assert {row.role for row in found} == {SAME}
    for one, other in zip(ours, theirs, strict=True):
        assert one.family == other.family
        if one.family != "pab":
            assert one.figures["deep steps"] == other.figures["deep steps"]
        if workload.family == "wan" or one.family not in NOTES or one.family == "taylorseer model":
            apart = one.figures["PSNR mean"] - other.figures["PSNR mean"]
            assert abs(apart) <= LIMIT, (one.family, other.system, apart)


def test_a_model_is_traced_once_for_all_its_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = WORKLOADS[0]
    traced, graphs = Traced(workload), []
    backend = traced._step
    monkeypatch.setattr(traced, "_step", lambda gm, inputs: graphs.append(gm) or backend(gm, inputs))
    for deep in LEVELS:
        config = METHODS["fora"].make(None, deep).config
        done = levels.generate(traced.under(config), workload, 0)
        assert done.deep is not None
        assert sum(done.deep) == deep
    assert len({id(gm) for gm in graphs}) == 1


def test_what_a_table_leaves_out_is_summed_over_its_sites() -> None:
    workload = WORKLOADS[1]
    traced = Traced(workload)
    known = Calibrated(workload)
    both = {"attention": 2, "cross_attention": 3}
    config = METHODS["pab"].make(known, None).config
    rows = (Schedule.every(2), Schedule.every(3))
    config = dataclasses.replace(config, schedule=Schedule.table(*rows))
    levels.generate(traced.under(config), workload, 0)
    shares = [traced.share(kind) for kind in both]
    reused = [1 - len(row.deep_steps(STEPS)) / STEPS for row in rows]
    assert traced.left_out() == pytest.approx(shares[0] * reused[0] + shares[1] * reused[1])
    assert 0 < shares[1] < shares[0] < traced.share("trunk") < 1


class Searching(Levels):
    """Without a model: a dial gives so many deep steps."""

    def __init__(self, deep: Callable[[float], float]) -> None:
        self.workload, self._deep, self.tried = WORKLOADS[0], deep, list[float]()
        self.known: Any = SimpleNamespace(workload=self.workload)

    def _reached(self, method: Any, level: int, value: float) -> float:
        self.tried.append(value)
        return self._deep(value)


@pytest.mark.parametrize("level", LEVELS)
def test_a_threshold_is_searched_for_and_kept(level: int) -> None:
    searching = Searching(lambda threshold: min(30.0, max(4.0, 12 - 6 * threshold / 0.4)))
    dial = searching.dial("fbcache", level)
    assert abs(dial.reached - level) <= levels.NEAR or level == 15
    assert json.loads(levels.FILE.read_text())["flux"]["fbcache"][str(level)]["value"] == dial.value
    count = len(searching.tried)
    assert searching.dial("fbcache", level) == dial
    assert len(searching.tried) == count


def test_where_no_threshold_gives_the_number_the_nearest_is_taken() -> None:
    searching = Searching(lambda threshold: 12.0 if threshold < 0.1 else 9.0)
    assert searching.dial("fbcache", 10).reached == 9.0


def made(method: str, role: str, psnr: float, deep: float = 10.0, **more: Any) -> Row:
    figures = {"PSNR mean": psnr, "deep steps": deep, "expected speed-up": 2.0, "generations": 2.0}
    return Row("methods", "shapes FLUX", "preset " + method, "a setting", role, figures, **more)


def test_the_page_says_where_another_number_was_reached_and_ranks_by_ten() -> None:
    rows = [made("foca", "10 deep", 40.0), made("fora", "10 deep", 41.0, 11.0), made("pab", levels.OWN, 50.0, 20.0)]
    text = "\n".join(methods_page.section(rows))
    assert text.index("| fora |  | 41.0 (11.0) |") < text.index("| foca |  | 40.0 |")
    assert "| pab | a setting | 50.0 | 2.00x |" in text


@pytest.mark.parametrize(("theirs", "verdict"), [(40.4, "the same"), (40.6, "**apart**")])
def test_the_page_says_whether_ours_is_theirs(theirs: float, verdict: str) -> None:
    ours = made("fbcache", SAME, 40.0, family="fbcache")
    peer = dataclasses.replace(made("", SAME, theirs, family="fbcache"), system="FirstBlockCache")
    text = "\n".join(methods_page.section([ours, peer]))
    assert f"| fbcache | FirstBlockCache, a setting | 40.00 | {theirs:.2f} | {40 - theirs:+.2f} | {verdict} |" in text


def test_a_method_that_does_not_run_says_so() -> None:
    failed = Row("methods", "shapes FLUX", "preset foca", "", "10 deep", {}, why="ValueError: no")
    assert "did not run: ValueError: no" in "\n".join(methods_page.section([failed]))


def test_what_was_not_tuned_has_a_row_that_says_how_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "FOLDER", tmp_path)
    (one, *_) = Searching(lambda threshold: 10.0).rows("tune")
    assert not one.figures
    assert "--learn 15 --workload flux" in one.why


@pytest.mark.parametrize("path", sorted(found.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_what_was_tuned_is_of_the_comparisons_model(path: Path) -> None:
    key, deep = path.stem.split("-")
    workload = next(workload for workload in TRAINED if workload.key == key)
    config = METHODS["tune"].make(SimpleNamespace(workload=workload), int(deep)).config
    assert len(config.schedule.deep_steps(STEPS)) == int(deep)


def test_a_preset_is_written_as_json() -> None:
    one = METHODS["taylorseer"].make(None, 7)
    assert isinstance(one, Preset)
    assert one.label == "interval=6"
    assert "Taylor(order=1, first=3" in row("methods", WORKLOADS[0], one, "7 deep", {}).setting["config"]
