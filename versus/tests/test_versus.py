"""The compared systems do what the benchmark says of them: each on tiny models, eagerly, without a time being taken."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from bench.clips import model as clips
from bench.shapes import model as shapes
from dicache_compile import DiCacheConfig
from versus import __main__ as runner
from versus import gallery, guards, plots, roster, sweep, tuned
from versus.bars import DEEP_STEPS, GUARDS_ONCE
from versus.compare import Entrant
from versus.dbcache import DBCache
from versus.families import FAMILIES, FEW, _growing, moved
from versus.first_block import FirstBlock
from versus.generation import Generation, generate
from versus.mag import Mag
from versus.ours import STATIC, UNPROBED, Ours
from versus.published import PublishedDiCache
from versus.pyramid import PyramidAttentionBroadcast
from versus.roster import equal, quality
from versus.sea import Sea
from versus.system import Installed, Schedule, System, eager, setting
from versus.taylorseer import TaylorSeer
from versus.uncached import FewerSteps, Uncached
from versus.workload import FLUX, STEPS, WAN, Workload

SMALL = {"num_attention_heads": 2}
SIDE = 8  # pixels, instead of 32


def tiny_flux() -> nn.Module:
    torch.manual_seed(0)
    config = {**shapes.CONFIG, **SMALL, "num_layers": 2, "num_single_layers": 3}
    return diffusers.FluxTransformer2DModel(**config).eval().requires_grad_(False)


def tiny_wan() -> nn.Module:
    torch.manual_seed(0)
    config = {**clips.CONFIG, **SMALL, "ffn_dim": 64, "num_layers": 4}
    return diffusers.WanTransformer3DModel(**config).eval().requires_grad_(False)


def small_pictures(model: Callable[..., Any], prompts: Sequence[Any], seed: int, steps: int) -> Tensor:
    return shapes.generate(model, prompts, seed, steps, size=SIDE)


def small_clips(model: Callable[..., Any], prompts: Sequence[Any], seed: int, steps: int) -> Tensor:
    return clips.generate(model, prompts, seed, steps, frames=2)


WORKLOADS = (
    dataclasses.replace(FLUX, load=tiny_flux, sample=small_pictures),
    dataclasses.replace(WAN, load=tiny_wan, sample=small_clips),
)
SYSTEMS: tuple[Callable[..., System], ...] = (
    Ours,
    partial(Ours, changed=STATIC),
    FirstBlock,
    partial(Mag, (1.0,) * STEPS),
    TaylorSeer,
    partial(TaylorSeer, lite=True),
    Sea,
    DBCache,
    partial(DBCache, taylorseer=True),
)
each_workload = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.key)


def run(system: System, workload: Workload, seed: int = 0) -> Generation:
    installed = system.install(workload.load(), workload)
    generate(installed, workload, seed + 1)  # what it leaves behind must not be seen
    return generate(installed, workload, seed)


def scheduled(workload: Workload, schedule: Schedule) -> list[System]:
    published = PublishedDiCache(workload.family, schedule=schedule)
    return [*(make(schedule=schedule, compiled=False) for make in SYSTEMS), published]


@pytest.mark.exhaustive
@each_workload
@pytest.mark.parametrize("schedule", [Schedule(3, 3), Schedule(5, 4)], ids=str)
def test_every_system_runs_exactly_the_steps_of_a_schedule_deep(workload: Workload, schedule: Schedule) -> None:
    expected = tuple(schedule.deep(step) for step in range(STEPS) for _ in workload.streams)
    for system in scheduled(workload, schedule):
        done = run(system, workload)
        assert done.deep == expected, (system.name, system.label)
        assert torch.isfinite(done.pixels).all()


@each_workload
@pytest.mark.parametrize("taylorseer", [False, True])
def test_a_mask_of_deep_steps_is_kept_whatever_the_threshold(workload: Workload, taylorseer: bool) -> None:
    mask = (0, 1, 4, 9, 11)
    done = run(DBCache(math.inf, taylorseer, deep_steps=mask, compiled=False), workload)
    assert done.deep == tuple(step in mask for step in range(STEPS) for _ in workload.streams)


@pytest.mark.parametrize("deep", [*DEEP_STEPS, 5])
def test_growing_gaps_make_as_many_deep_steps_and_never_shrink(deep: int) -> None:
    found = _growing(deep)
    assert len(found) == len(set(found)) > 5
    for steps in found:
        gaps = [after - before for before, after in itertools.pairwise(steps)]
        assert len(steps) == deep
        assert gaps == sorted(gaps)
        assert steps[0] == 0
    few = {STEPS - 7, STEPS - 5} if deep <= FEW else set()
    assert {steps[-1] for steps in found} == {STEPS - 3, STEPS - 2} | few


def test_gaps_may_grow_evenly_or_early() -> None:
    found = _growing(10)
    assert (0, 1, 2, 5, 8, 11, 15, 19, 23, 28) in found
    assert (0, 1, 3, 6, 9, 12, 16, 20, 24, 28) in found


@pytest.mark.parametrize(
    "system",
    [
        DBCache(math.inf, taylorseer=True, order=2, deep_steps=(0, 1, 4, STEPS - 1)),
        Ours(threshold=math.inf, changed={**UNPROBED, "deep_steps": (0, 1, 4, STEPS - 1)}),
        Ours(threshold=math.inf, changed={**UNPROBED, "deep_steps": [0, 1, 4, STEPS - 1]}),  # from `tuned.json`
    ],
)
def test_one_deep_step_moves_by_one_and_all_else_stays(system: System) -> None:
    def mask(system: System) -> tuple[int, ...]:
        return tuple(system.deep_steps if isinstance(system, DBCache) else system.changed["deep_steps"])  # type: ignore

    near = moved(system)
    assert {mask(one) for one in near} == {(0, 2, 4, 29), (0, 1, 3, 29), (0, 1, 5, 29), (0, 1, 4, 28)}
    for one in near:
        assert mask(system) in map(mask, moved(one))
        assert one.label.split("deep_steps")[0] == system.label.split("deep_steps")[0]


@pytest.mark.parametrize("system", [DBCache(), Ours(threshold=0.1), TaylorSeer()])
def test_a_setting_that_does_not_say_which_steps_are_deep_cannot_be_moved(system: System) -> None:
    assert moved(system) == []


def deep_steps(config: DiCacheConfig) -> tuple[int, ...]:
    """Of a config that reuses whatever is not forced."""
    found, most = [], math.inf if config.max_consecutive_skips is None else config.max_consecutive_skips
    for step in range(STEPS):
        skipped = step - 1 - (found[-1] if found else -1)
        forced = step < config.warmup_steps or step in config.deep_steps or step >= STEPS - config.final_steps
        if forced or skipped >= most:
            found.append(step)
    return tuple(found)


@pytest.mark.parametrize("deep", DEEP_STEPS)
def test_the_schedules_that_are_tried_for_ours_are_tried_for_a_peer_that_takes_them(deep: int) -> None:
    tiny, _ = WORKLOADS
    ours = {deep_steps(system.config()) for system in FAMILIES["dicache_compile unprobed"](tiny, deep, ())}  # type: ignore[attr-defined]
    for family in ("DBCache", "DBCache TaylorSeer"):
        masks = [system.deep_steps for system in FAMILIES[family](tiny, deep, ())]  # type: ignore[attr-defined]
        assert set(masks) - {()} == ours
    assert {len(steps) for steps in ours} == {deep}
    settings = FAMILIES["TaylorSeerCache lite"](tiny, deep, ())
    assert len(settings) == len(set(settings)) > 5
    assert {sum(map(setting.computes, range(STEPS))) for setting in settings} == {deep}  # type: ignore[attr-defined]


@pytest.mark.exhaustive
@each_workload
def test_a_system_that_reuses_nothing_draws_what_the_uncached_model_draws(workload: Workload) -> None:
    plain = run(Uncached(compiled=False), workload)
    for system in scheduled(workload, Schedule(STEPS, 1)):
        done = run(system, workload)
        # The scripts add the probe's residual on their way to the deep blocks; all else is the same arithmetic.
        torch.testing.assert_close(done.pixels, plain.pixels, rtol=0, atol=1e-5, msg=f"{system.name}, {system.label}")


@pytest.mark.exhaustive
@each_workload
def test_a_system_that_reuses_draws_something_else(workload: Workload) -> None:
    plain = run(Uncached(compiled=False), workload)
    systems = [*scheduled(workload, Schedule(3, 3)), PyramidAttentionBroadcast(compiled=False)]
    for system in systems:
        assert not torch.equal(run(system, workload).pixels, plain.pixels), (system.name, system.label)


@each_workload
def test_the_published_rule_and_our_preset_decide_and_draw_alike(workload: Workload) -> None:
    theirs = run(PublishedDiCache(workload.family), workload)
    ours = run(Ours(preset=workload.family, compiled=False), workload)
    assert theirs.deep == ours.deep
    torch.testing.assert_close(theirs.pixels, ours.pixels)


def test_all_that_follow_the_schedule_do_so_with_guards_once_too() -> None:
    workload = sweep.workload(64, 128)
    first, *rest = roster.guarded_once(workload)
    assert first.system == Uncached()
    assert [entrant.system for entrant in rest] == [entrant.system for entrant in roster.scheduled(workload)]
    assert all(entrant.guards_once and entrant.role == GUARDS_ONCE for entrant in (first, *rest))
    assert not any(entrant.guards_once for entrant in roster.scheduled(workload))


def test_with_guards_once_a_change_of_the_model_is_seen_in_the_next_generation_only() -> None:
    model = SimpleNamespace(factor=1.0)
    run = torch.compile(lambda x: x * model.factor, backend="eager")
    once = guards.once(Installed(lambda stream, step, inputs: run(**inputs)))
    inputs = {"x": torch.ones(1)}
    assert once.call("cond", 0, inputs) == 1.0
    model.factor = 2.0
    assert once.call("cond", 1, inputs) == 1.0
    assert once.call("cond", 0, inputs) == 2.0
    assert run(x=torch.ones(2))[1] == 2.0  # and all guards are checked again outside of it


def test_the_sweeps_models_are_of_the_sizes_that_they_are_named_by() -> None:
    workload = sweep.workload(64, 128)
    seen: dict[str, Any] = {}

    def model(**inputs: Any) -> tuple[Tensor]:
        seen.update(inputs)
        return (inputs["hidden_states"],)

    workload.sample(model, [None], 0, 2)
    assert seen["hidden_states"].shape == (1, 64, sweep.CHANNELS)
    assert workload.load().inner_dim == 128


@pytest.mark.parametrize("workload", [FLUX, WAN], ids=lambda workload: workload.key)
def test_every_tuned_setting_is_made_again_and_written_as_json(workload: Workload) -> None:
    entrants = [entrant for entrant in equal(workload) if entrant.system.name != FewerSteps.name]
    assert len(entrants) == len(FAMILIES) * len(DEEP_STEPS)
    for entrant in entrants:
        json.dumps(setting(entrant.system), allow_nan=False, default=repr)
    ours = [entrant.system for entrant in entrants if isinstance(entrant.system, Ours)]
    assert [system.config().threshold == math.inf for system in ours] == [False] * 3 + [True] * 3


def test_a_family_that_was_not_tuned_takes_part_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "FILE", tmp_path / "tuned.json")
    monkeypatch.setattr(roster, "_ratios", lambda workload: (1.0,) * STEPS)
    entrants = quality(FLUX)
    assert [entrant.family for entrant in entrants] == list(FAMILIES)
    for entrant in entrants:
        assert f'--tune --workload flux --family "{entrant.family}"' in entrant.why_not


def test_the_grid_shows_each_family_once_at_one_number_of_deep_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[System] = []

    def pictures(system: System, workload: Workload) -> list[Tensor]:
        drawn.append(system)
        return [torch.zeros(3, 8, 8)] * len(gallery.SEEDS)

    lines: dict[str, Any] = {}
    monkeypatch.setattr(gallery, "_pictures", pictures)
    monkeypatch.setattr(plots, "grid", lambda shown, path, titles: lines.update(shown))
    gallery.draw(FLUX, tmp_path / "grid.png")
    ten = [entrant.system for entrant in equal(FLUX) if entrant.family and entrant.role == "10 deep"]
    assert drawn == [Uncached(), *ten]
    assert len(lines) == 1 + len(FAMILIES)
    assert {note for shown in lines.values() for _, note in shown} == {"", "inf dB"}


@pytest.mark.parametrize(
    ("arguments", "keys", "parts"),
    [
        ("--quick", "flux", ("own", "methods", "costs")),
        ("--quick --workload wan", "wan", ("own", "methods", "costs")),
        ("--quick --part schedule", "flux", ["schedule"]),
        ("", "flux wan", runner.PARTS),
    ],
)
def test_the_quick_comparison_is_of_own_settings_and_methods_on_one_model(
    monkeypatch: pytest.MonkeyPatch, arguments: str, keys: str, parts: Sequence[str]
) -> None:
    asked: list[tuple[Any, Any]] = []
    monkeypatch.setattr("sys.argv", ["versus", *arguments.split()])
    monkeypatch.setattr(runner, "quiet", lambda: None)
    monkeypatch.setattr(runner, "measure", lambda results, parts, workloads, *rest: asked.append((parts, workloads)))
    monkeypatch.setattr(runner.page, "write", lambda rows, page: None)
    runner.main()
    assert [(given, [workload.key for workload in workloads]) for given, workloads in asked] == [(parts, keys.split())]


def test_the_smallest_sizes_are_swept_with_guards_once_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: dict[str, list[tuple[str, bool]]] = {}

    def compare(experiment: str, workload: Workload, entrants: Sequence[Entrant], *_: Any, **__: Any) -> list[Any]:
        ran[workload.key] = [(entrant.system.name, entrant.guards_once) for entrant in entrants]
        return []

    monkeypatch.setattr(runner, "compare", compare)
    monkeypatch.setattr(sweep, "fastest_threads", lambda *_, **__: 1)
    runner.measure(tmp_path / "rows.jsonl", ["sweep"], [], quick=False)
    for tokens, width in sweep.SIZES:
        once = [name for name, once in ran[f"{tokens}x{width}"] if once]
        every = [name for name, once in ran[f"{tokens}x{width}"] if not once]
        assert once == (["uncached", *every] if (tokens, width) in sweep.GUARDS_TELL else [])
    runner.measure(tmp_path / "rows.jsonl", ["sweep"], [], quick=False, only=["SeaCache"], sizes=sweep.SIZES[:1])
    assert ran["64x128"] == [("SeaCache", False), ("uncached", True), ("SeaCache", True)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--tune --deep 10 --deep 7", [([10, 7], True)] * 2),
        ("--tune --deep 10 --part equal --workload wan", [([10], False)]),
        ("--tune --part equal --workload flux", [(DEEP_STEPS, False)]),
        ("--tune --part quality --workload flux", [((), True)]),
        ("--tune --part quality --deep 10", "give --tune, and no --part but with equal"),
        ("--deep 10", "give --tune, and no --part but with equal"),
    ],
)
def test_what_is_tuned_is_what_was_asked_for(
    words: str, expected: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("sys.argv", ["versus", *words.split()])
    monkeypatch.setattr(runner, "quiet", lambda: None)
    monkeypatch.setattr(runner, "measure", lambda *given: pytest.fail("nothing was to be measured"))
    monkeypatch.setattr(runner, "tune", lambda workload, families, targets, quality: asked.append((targets, quality)))
    if isinstance(expected, str):
        with pytest.raises(SystemExit, match="2"):
            runner.main()
        assert expected in capsys.readouterr().err
        assert not asked
    else:
        runner.main()
        assert asked == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("deep", DEEP_STEPS)
def test_ours_without_a_probe_has_as_many_deep_steps_as_it_is_asked_for(deep: int) -> None:
    tiny, _ = WORKLOADS
    variants = FAMILIES["dicache_compile unprobed"](tiny, deep, ())
    for system in (variants[0], variants[-1]):
        assert sum(run(eager(system), tiny).deep or ()) == deep
