"""The published methods as presets of ours: of each how a config with so many deep steps is made.

A schedule has the method's own form where that gives the number, and else the method's first steps and equal gaps after
them. A threshold is searched for. Where a method's own limits leave no such number, they are moved as little as will
do: fewer first steps, or more reused ones in a row. A setting's label says all that was given to the preset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dicache_compile import DiCacheConfig, Schedule, calibrate
from dicache_compile.gates import Planned
from dicache_compile.planning import tapered
from dicache_compile.published import numbers_of

from . import found
from .calibrated import Calibrated
from .system import Installed
from .workload import STEPS, Workload

LEVELS = (15, 10, 7, 5)
PREFIX = "preset "
_NO_LIMIT = 10  # deep steps from which on the usual limit of reused steps in a row is in the way


@dataclass(frozen=True, slots=True)
class Preset:
    """One config of a method, as a system of the results."""

    source: ClassVar[str] = "this repository"
    recipe: ClassVar[str] = "eager"
    dial: ClassVar[str | None] = None
    compiled: ClassVar[bool] = False
    method: str  # "taylorseer"
    call: str  # what the preset was given: "interval=6, order=1"
    config: DiCacheConfig

    @property
    def name(self) -> str:
        return PREFIX + self.method

    @property
    def label(self) -> str:
        return self.call

    def why_not(self, workload: Workload) -> None:
        return None

    def install(self, model: Any, workload: Workload) -> Installed:
        raise NotImplementedError("it is run by `levels.measure`, which traces a model once for all")


@dataclass(frozen=True, slots=True)
class Method:
    """How a method comes to a number of deep steps."""

    make: Callable[..., Preset]  # of (what is calibrated, deep steps), and of the dial where there is one
    dial: tuple[float, float] | None = None  # from which value to which it is searched; larger: fewer deep steps
    by: Literal["runs", "plan", "work"] = "runs"  # what is counted: steps that ran deep, that are planned, or work
    levels: tuple[int | None, ...] = LEVELS  # None: its own setting, whatever that is
    note: str = ""  # what a reader has to know of its settings


def preset(name: str, *, label: str = "", shown: Mapping[str, Any] | None = None, **given: Any) -> Preset:
    """`shown`: instead of what is given, where that is long."""
    config = DiCacheConfig.preset(
        name, **given, **({} if "sigmas" in given else {"num_steps": STEPS}), lowering="eager"
    )
    return Preset(label or name, _call(given if shown is None else shown), config)


def fitted(name: str, config: DiCacheConfig, **shown: Any) -> Preset:
    return Preset(name, _call(shown), dataclasses.replace(config, num_steps=STEPS, lowering="eager"))


def spaced(first: int, deep: int) -> Schedule:
    """So many deep steps: the first ones, and the others at gaps that are equal but for their rounding."""
    first = _first(first, deep)
    gap = (STEPS - first + 1) / (deep - first + 1)
    return Schedule.steps(*range(first), *(first - 1 + round(gap * place) for place in range(1, deep - first + 1)))


def _first(own: int, deep: int, others: int = 2) -> int:
    """The method's own number of first steps, or as many as leave some deep steps for later."""
    return max(1, min(own, deep - others))


def _call(given: Mapping[str, Any]) -> str:
    def said(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else repr(value)

    return ", ".join(f"{name}={said(value)}" for name, value in given.items())


def _every(name: str, own: int, label: str = "", *, has_first: bool = True, **given: Any) -> Method:
    """A method that runs deep on every so manyth step after some first ones."""

    def make(known: Calibrated, deep: int) -> Preset:
        first = _first(own, deep)
        moved = {"first": first} if has_first and first != own else {}
        exact = _intervals(deep, lambda interval: Schedule.every(interval, after=first))
        for interval in exact:
            return preset(name, label=label, interval=interval, **moved, **given)
        return preset(name, label=label, schedule=spaced(own, deep), **given)

    return Method(make)


def _intervals(deep: int, schedule: Callable[[int], Schedule]) -> Iterator[int]:
    """The intervals that give so many deep steps, the shortest first."""
    return (interval for interval in range(1, STEPS) if len(schedule(interval).deep_steps(STEPS)) == deep)


def _freqca(known: Calibrated, deep: int) -> Preset:
    return _every("freqca", 3, grid=known.grid[1:] if known.grid[0] == 1 else None).make(known, deep)


def _hyca(known: Calibrated, deep: int) -> Preset:
    config = calibrate(known.recording(), "hyca", first=_first(3, deep))
    first = _first(3, deep)
    schedules = [Schedule.every(n, after=first) for n in _intervals(deep, lambda n: Schedule.every(n, after=first))]
    schedule = (*schedules, spaced(3, deep))[0]
    return fitted("hyca", dataclasses.replace(config, schedule=schedule), schedule=schedule, clusters=2)


def _abcache(known: Calibrated, deep: int) -> Preset:
    first = _first(5, deep)

    def schedule(interval: int) -> Schedule:
        return Schedule.mask([step < first or step % interval == 0 for step in range(STEPS)])

    for interval in _intervals(deep, schedule):
        return preset("abcache", interval=interval, **({} if first == 5 else {"first": first}))
    return preset("abcache", schedule=spaced(5, deep))


def _spectrum(known: Calibrated, deep: int) -> Preset:
    first = _first(5, deep)
    given = {} if first == 5 else {"first": first}
    for growth in sorted((place / 20 for place in range(201)), key=lambda growth: abs(growth - 0.75)):
        found = preset("spectrum", growth=growth, **given)
        assert found.config.schedule is not None
        if len(found.config.schedule.deep_steps(STEPS)) == deep:
            return found
    return preset("spectrum", schedule=spaced(5, deep))


def _toca(known: Calibrated, deep: int) -> Preset:
    schedules = (tapered(STEPS, interval=place / 20) for place in range(20, 400))
    exact = (one for one in schedules if len(one.deep_steps(STEPS)) == deep)
    return preset("toca", schedule=next(exact, spaced(1, deep)))


def _meancache(known: Calibrated, deep: int) -> Preset:
    steps = spaced(2, deep).listed
    return preset("meancache", deep_steps=steps, sigmas=known.sigmas, shown={"deep_steps": steps})


def _profilingdit(known: Calibrated, deep: int) -> Preset:
    middle = known.blocks // 2
    ranges = ((1, middle), (middle + 1, known.blocks - 1))
    return preset("profilingdit", ranges=ranges, deep_steps=spaced(1, deep).listed)


def _magcache(known: Calibrated, deep: int, threshold: float) -> Preset:
    most = max(5, -(-(STEPS - 3) // (deep - 3)) - 1)
    config = calibrate(known.recording(), "magcache", threshold=threshold, max_skips=most)
    return fitted("magcache", config, threshold=threshold, max_skips=most)


def _teacache(known: Calibrated, deep: int, threshold: float) -> Preset:
    return fitted(
        "teacache", calibrate(known.recording("modulated"), "teacache", threshold=threshold), threshold=threshold
    )


def _smoothcache(known: Calibrated, deep: int, threshold: float) -> Preset:
    errors = {kind: known.lags(kind, most=3 if deep > _NO_LIMIT else 9) for kind in known.kinds}
    shown = {"threshold": threshold, "lags": 3 if deep > _NO_LIMIT else 9}
    return preset("smoothcache", errors=errors, threshold=threshold, shown=shown)


def _ertacache(known: Calibrated, deep: int, threshold: float) -> Preset:
    return fitted("ertacache", calibrate(known.recording(), "ertacache", threshold=threshold), threshold=threshold)


def _cachequant(known: Calibrated, deep: int) -> Preset:
    steps = spaced(1, deep).listed
    return fitted("cachequant", calibrate(known.recording(), "cachequant", deep_steps=steps), deep_steps=steps)


def _dpcache(known: Calibrated, deep: int) -> Preset:
    config = calibrate(known.recording(), "dpcache", deep=deep)
    return fitted("dpcache", config, schedule=config.schedule)


def _dicache(known: Calibrated, deep: int, threshold: float) -> Preset:
    name = known.workload.family
    moved = {} if deep >= _NO_LIMIT else {"warmup_ratio": None, "warmup_inclusive": False, "warmup_steps": deep - 3}
    return preset(name, label="dicache", threshold=threshold, **moved)


def _default(known: Calibrated, deep: int, threshold: float) -> Preset:
    given: dict[str, Any] = {"threshold": threshold, "max_consecutive_skips": None}
    return Preset("default rule", _call(given), DiCacheConfig(**given, num_steps=STEPS, lowering="eager"))


def _gate(
    name: str, label: str = "", own: int = 1, parameter: str = "warmup_steps", **given: Any
) -> Callable[..., Preset]:
    """A method whose preset has a threshold and some first steps."""

    def make(known: Calibrated, deep: int, threshold: float) -> Preset:
        first = _first(own, deep, 3)
        moved = {parameter: first} if first != own else {}
        return preset(name, label=label, threshold=threshold, **moved, **given)

    return make


def _seacache(known: Calibrated, deep: int, threshold: float) -> Preset:
    given: dict[str, Any] = {} if deep > _NO_LIMIT else {"max_skips": None}
    return preset("seacache", grid=known.grid, sigma=known.pure_noise, threshold=threshold, **given)


def _adacache(known: Calibrated, deep: int, scale: float) -> Preset:
    model = "open-sora-30-fast" if deep >= _NO_LIMIT else "open-sora-100"
    *pairs, (_, beyond) = numbers_of("adacache", model)["codebook"]
    plan = (*((bound * scale, steps - 1) for bound, steps in pairs), (float("inf"), beyond - 1))
    shown = {"model": model, "bounds_times": scale}
    return preset("adacache", model=model, gate=Planned(plan), shown=shown)


def _bwcache(known: Calibrated, deep: int, threshold: float) -> Preset:
    given = {"reused": max(5, -(-(STEPS - 2) // (deep - 2)) - 1)}
    return preset("bwcache", threshold=threshold, **({} if given["reused"] == 5 else given))


def _speca(known: Calibrated, deep: int, threshold: float) -> Preset:
    reused = -(-STEPS // deep)
    return preset("speca", threshold=threshold, least=max(0, reused - 2), most=3 * reused)


def _h2cache(known: Calibrated, deep: int, scale: float) -> Preset:
    double = known.doubles
    given: dict[str, Any] = {"double": double, "single": known.blocks - double}
    return preset("h2cache", first=0.12 * scale, second=0.09 * scale, **given)


def _tuned(known: Calibrated, deep: int) -> Preset:
    config, _ = found.load(known.workload, deep)
    return fitted("tune", config, schedule=config.schedule, estimator=config.estimator)


def _fastercache(known: Calibrated, deep: None) -> Preset:
    two_calls = "uncond" in known.workload.streams
    return preset("fastercache", guidance=5 if two_calls else None, shown={} if two_calls else {"guidance": None})


def _mixcache(known: Calibrated, deep: None) -> Preset:
    third = known.blocks // 3
    guided = {} if "uncond" in known.workload.streams else {"guidance": None}
    return preset("mixcache", blocks=(third, 2 * third), **guided)


def _pab(known: Calibrated, deep: None) -> Preset:
    given = {"cross_attention": 5} if "cross_attention" in known.kinds else {}
    return preset("pab", window=known.window(100, 800), **given, shown={"attention": 2, **given})


_ATTENTIONS = "its unit is an attention, not a step: one row, at its own setting"
_WORK = "its unit is no step: each number stands for the work of so many deep steps"
_GATE = (0.003, 3.0)

METHODS: dict[str, Method] = {
    "default rule": Method(_default, _GATE),
    "dicache": Method(_dicache, _GATE),
    "fbcache": Method(_gate("fbcache"), _GATE),
    "dbcache": Method(_gate("dbcache", own=8, first_blocks=1), _GATE),
    "dbcache order 1": Method(_gate("dbcache", "dbcache order 1", own=8, first_blocks=1, order=1), _GATE),
    "teacache": Method(_teacache, _GATE),
    "easycache": Method(_gate("easycache", own=10, parameter="first"), _GATE),
    "seacache": Method(_seacache, _GATE),
    "worldcache": Method(_gate("worldcache", own=3), _GATE),
    "adacache": Method(_adacache, (0.01, 30.0)),
    "bwcache": Method(_bwcache, _GATE),
    "speca": Method(_speca, (0.003, 30.0)),
    "h2cache": Method(_h2cache, (0.03, 30.0), "work", note=_WORK),
    "taylorseer": _every("taylorseer", 3),
    "taylorseer modules": _every("taylorseer", 3, "taylorseer modules", where="modules"),
    "hicache": _every("hicache", 2),
    "foca": _every("foca", 3),
    "hyca": Method(_hyca),
    "abcache": Method(_abcache),
    "freqca": Method(_freqca),
    "spectrum": Method(_spectrum),
    "meancache": Method(_meancache),
    "fora": _every("fora", 1, has_first=False),
    "toca": Method(_toca, note="its reused steps compute a tenth of the tokens of each MLP"),
    "magcache": Method(_magcache, (1e-4, 30.0), "plan"),
    "ertacache": Method(_ertacache, _GATE, "plan"),
    "dpcache": Method(_dpcache),
    "cachequant": Method(_cachequant),
    "profilingdit": Method(_profilingdit, note="its reused steps run three blocks"),
    "smoothcache": Method(_smoothcache, (1e-3, 10.0), "work", note=_WORK),
    "tune": Method(_tuned, note="this package's own search, with weights for each step; where it was run"),
    "pab": Method(_pab, levels=(None,), note=_ATTENTIONS),
    "fastercache": Method(_fastercache, levels=(None,), note=_ATTENTIONS),
    "mixcache": Method(_mixcache, levels=(None,), note="it takes calls, steps and blocks in turn: one row, likewise"),
}
OUTSIDE = {
    "flowcache": "it is for models that draw a clip chunk by chunk, and neither of the two does",
    "learning-to-cache": "its routers are trained with the model, and there are none for these two",
    "hunyuan": "DiCache's rule for another model: each of the two has the script that is nearest, as `dicache`",
}
"""Presets that have no row, and why."""
