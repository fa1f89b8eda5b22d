"""The config: every knob of a compiled cache, checked when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch

from . import checks
from .estimators import DCTA, FeedbackDCTA, SecondOrderDCTA
from .fields import REPLACES, RUN_TIME
from .gates import EstimateError, ProbeError
from .presets import PRESETS
from .rules import Decider, EstimateGate, Estimator, Gate, Rule
from .schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class DiCacheConfig:
    """The settings of a cached model: when a step is reused, and what stands in for its deep blocks.

    The default is meant to be safe on a model that nobody has tuned. It needs no number of steps, reuses a step only
    if the probe's result has hardly changed, and never more than three in a row. `preset` gives the published rules.

    In the fields' texts x is the value that enters the trunk, h what leaves the probe, y what leaves the trunk. An
    anchor is what a deep step leaves behind for later estimates.

    Raises TypeError or ValueError, naming the field, for a value of the wrong type, out of range or contradictory.
    """

    threshold: float = 0.05
    """A step is reused while its error is below this. 0 never reuses; `inf` reuses every step that is not forced. 0.05
    is the lowest that the paper measures (HunyuanVideo: 35 dB, 1.8x). It uses 0.4 on FLUX, 0.1 to 0.2 on video."""

    probe_depth: int = 1
    """How many blocks run on every step. The paper takes 1 on every model; more costs speed and gains little. With 0 no
    block does: the trunk's input is measured in place of the probe's result."""

    sites: str | tuple[str, ...] | tuple[int, int] | tuple[tuple[int, int], ...] = "trunk"
    """Which blocks of the trunk may be left out, but for the probe, which is the first of them. "trunk": all. Or from
    which to which, as in a slice: with (0, -8) the last eight blocks run on every step. Or several such ranges, in
    order, of which a step leaves out all or none: x and y are then each range's own, and h is the first one's. Or parts
    of all blocks, on a schedule: "attention", "cross_attention", "mlp", or several of these."""

    gamma_range: tuple[float, float] = (1.0, 1.5)
    """How far the estimate may go: 1 stays at the newest anchor, above 1 goes on in the direction from the older anchor
    to the newest. The range of the FLUX and HunyuanVideo scripts."""

    order: Literal[1, 2] = 1
    """1, as published: the estimate is on the line through the last two anchors. 2: on the curve through the last
    three, which is flattened the further it goes. Keeps two more tensors a stream. Helps with error="estimate" and
    with probe_depth=0."""

    feedback: float = 0.0
    """From 0 to 1. A deep step shows how much the estimates before it were off. With 1 the next reused step adds that
    amount back; with less it adds that share, and later steps that share of the rest. 0, as published: nothing. Helps
    on schedules that reuse early steps, and lets `gamma_range` be wide. Keeps one more tensor a stream. Only with
    `order=1`."""

    error: Literal["probe", "probe_minus_input", "estimate"] = "probe"
    """What is compared with the threshold. "probe", as published: how much h changes from step to step, added up since
    the last deep step. "probe_minus_input": the same, of the distance between that change and x's (`delta_minus` in the
    scripts; needs thresholds about five times smaller). "estimate": how far off the estimate is when it is tried on the
    probe, whose result is known; in this step alone."""

    comparison: Literal["<", "<="] = "<"
    """How the error is compared with the threshold: `<` in the FLUX and WAN scripts, `<=` in Hunyuan's."""

    warmup_steps: int = 3
    """This many first steps always run deep. After three there are two anchors one step apart, and the steps that
    change most are over."""

    warmup_ratio: float | None = None
    """This share of the steps, at the start, always runs deep. The longer of the two warm-ups counts. Needs the
    number of steps. 0.2 in the scripts. None: no such rule."""

    warmup_inclusive: bool = False
    """Whether step int(warmup_ratio * N) itself is forced too. True in the FLUX script, false in the others."""

    final_steps: int = 0
    """This many last steps always run deep. Needs the number of steps. 1 in the FLUX script."""

    schedule: Schedule | None = None
    """Which steps run deep, by their number alone: `Schedule.every(4)`, `Schedule.steps(0, 1, 4, 8)`. It stands in for
    the threshold and for the forced steps. Nothing is measured and nothing kept for it. With an estimator that does not
    look at the probe, such as `Reuse()`, no block runs on a reused step."""

    deep_steps: tuple[int, ...] | tuple[float, ...] = ()
    """These steps, counted from 0, always run deep too. Or shares of a generation: 0.5 is step 15 of 30. With
    `threshold=inf` and `max_consecutive_skips=None` they and the other forced steps are a whole schedule (cache-dit's
    step masks)."""

    max_consecutive_skips: int | None = 3
    """After this many reused steps in a row one runs deep. None: no limit, as in the scripts. 3 bounds how old an
    anchor can get if the threshold turns out too high for a model."""

    num_steps: int | None = None
    """Steps of a generation, for the rules that need the number. None: as a pipeline or `generation` says."""

    streams: Literal["auto", 1] = "auto"
    """"auto": unnamed calls that share a timestep are numbered, each number a stream. That reads the timestep on the
    host. 1: all unnamed calls are one stream. Names are given by `stream`, `generation` and diffusers' pipelines."""

    max_streams: int = 16
    """How many streams of a model have state at a time. With one more the one unused for longest gives way; it starts
    anew when it comes back."""

    joint: bool = False
    """Whether the calls of one step, such as the two of guidance, decide together: the first one at a timestep decides,
    and the others do as it did. Guidance multiplies the difference of its two calls. That is spoiled more if one of
    them is estimated and the other is not than if both are. Streams "a/cond" and "a/uncond" are of one request and
    decide together; so do all whose names have no "/", unnamed ones too. False, as in the scripts: each stream decides
    by itself."""

    state_dtype: torch.dtype | None = None
    """The floating dtype of the tensors that are kept between steps. None: each stream's own. Float8 keeps one float32
    scale a row (the last dimension) beside it; where differences decide something the stream's dtype is kept."""

    timestep_input: str | None = None
    """The name of the model's timestep argument. None: found by its name, or by the sine that is taken of it."""

    trunk: str | tuple[str, ...] | None = None
    """Module path of the ModuleList that holds the blocks, or several in the order in which they run. None: found."""

    lowering: Literal["inductor", "eager"] = "inductor"
    """"eager" runs the cut graph uncompiled: bit-exact, for debugging."""

    engine: Literal["auto", "conditional", "graphs", "calls", "cond"] = "auto"
    """How a step takes its branch. "conditional": one CUDA graph with the branch inside. "graphs": CUDA graphs; the
    host picks the second by the first one's result. "calls": the host calls one piece, reads the decision and calls
    another. "cond": one graph with a `torch.cond`. "auto": the first of these that model and device can have; on a CPU
    and with `lowering="eager"` it is "calls". A named engine that cannot be had is an error."""

    ranks_agree: bool = False
    """Whether all ranks of a process group decide alike, as with a schedule, or with a gate of your own that reduces
    its error. False: blocks that run collectives are not cached, because ranks that decide apart wait for ever."""

    strict: bool = False
    """Whether a graph that cannot be cut is an error. False: it runs uncached, with a warning. Small fragments around
    a graph break run uncached without a word in either case."""

    gate: Gate | EstimateGate | None = None
    """Decides in place of the default rule, and of `threshold`, `error` and `comparison`."""

    estimator: Estimator | None = None
    """Estimates in place of the default rule, and of `gamma_range`, `order` and `feedback`. Without a probe the
    estimator itself must say what it follows (`DCTA`: `along="input"`)."""

    def __post_init__(self) -> None:
        for name in ("trunk", "sites", "gamma_range", "deep_steps"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(tuple(part) if isinstance(part, list) else part for part in value))
        checks.check(self)

    @classmethod
    def preset(cls, name: Literal["flux", "hunyuan", "wan"], **overrides: Any) -> DiCacheConfig:
        """The rules of one of the three published scripts (github.com/Bujiazi/DiCache, commit dd7f0de).

        They count in shares of a generation, so outside of a diffusers pipeline they need `num_steps`.
        Raises ValueError for an unknown name, TypeError for an unknown field.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(map(repr, PRESETS))}")
        replaced = REPLACES["estimator"] if overrides.get("estimator") is not None else ()
        return cls(**{field: value for field, value in PRESETS[name].items() if field not in replaced} | overrides)

    def options(self) -> dict[str, Any]:
        """This config as the `options` of torch.compile."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def adjusted(self, **fields: Any) -> DiCacheConfig:
        """This config with other run-time fields (`RUN_TIME`), which another config need not be compiled for.

        Raises TypeError for a field that the compiled graph depends on, ValueError for one that a gate or an estimator
        of the config's own has no use for, and what DiCacheConfig raises.
        """
        for name in fields:
            if name not in RUN_TIME:
                known = name in {field.name for field in dataclasses.fields(self)}
                why = "is part of the compiled graph: compile the model again" if known else "is no field of the config"
                raise TypeError(f"{name}: {why}. At run time these can change: {', '.join(RUN_TIME)}")
        for by, replaced in REPLACES.items():
            owner = getattr(self, by)
            if owner is not None and (unread := [name for name in replaced if name in fields]):
                raise ValueError(f"{unread[0]}: nothing reads it, because the config has {by}={owner!r}")
        if "schedule" in fields and (self.schedule is None or fields["schedule"] is None):
            raise ValueError("schedule: at run time one takes another's place. To have one, or none, compile again")
        return dataclasses.replace(self, **fields) if fields else self

    def alike(self, other: DiCacheConfig) -> bool:
        """Whether both are compiled to the same graph: they differ in run-time fields at most."""
        return (self.schedule is None) == (other.schedule is None) and all(
            getattr(self, field.name) == getattr(other, field.name)
            for field in dataclasses.fields(self)
            if field.name not in RUN_TIME
        )

    def brief(self) -> str:
        """The fields that are not as in the default: 'threshold=0.1, num_steps=28'; 'the default' if there are none."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = (f"{f.name}={found[f.name]!r}" for f in dataclasses.fields(self) if found[f.name] != f.default)
        return ", ".join(changed) or "the default"

    def needs_num_steps(self) -> bool:
        if self.schedule is not None:
            return self.schedule.needs_num_steps()
        return self.warmup_ratio is not None or self.final_steps > 0 or self.deep_shares()

    def deep_shares(self) -> bool:
        """Whether `deep_steps` are shares of a generation."""
        return any(isinstance(step, float) and step < 1 for step in self.deep_steps)

    def counts_steps(self) -> bool:
        """Whether generations can be told apart without a timestep: all calls are of one stream, of known length."""
        return self.streams == 1 and self.num_steps is not None

    def make_gate(self) -> Decider | None:
        """What decides; None: the schedule does."""
        if self.gate is not None or self.schedule is not None:
            return self.gate
        if self.error == "estimate":
            return EstimateError(self.threshold, self.comparison)
        return ProbeError(self.threshold, self.error, self.comparison)

    def make_estimator(self) -> Estimator:
        if self.estimator is not None:
            return self.estimator
        along: Literal["probe", "input"] = "probe" if self.probe_depth and len(self.ranges()) < 2 else "input"
        if self.feedback:
            return FeedbackDCTA(self.gamma_range, along, self.feedback)
        return (DCTA if self.order == 1 else SecondOrderDCTA)(self.gamma_range, along)

    def rule(self) -> Rule:
        """What a step decides and estimates with."""
        return Rule(self.make_gate(), self.make_estimator(), self.state_dtype, self.joint)

    def blocks_on_every_step(self) -> int:
        """How many blocks run on every step: none where nothing looks at them."""
        return self.probe_depth if self.make_gate() is not None or self.make_estimator().probes else 0

    def parts(self) -> tuple[str, ...]:
        """The kinds of sublayers that may be left out; none: whole blocks."""
        sites: Any = (self.sites,) if isinstance(self.sites, str) else self.sites
        return () if sites == ("trunk",) or not isinstance(sites[0], str) else sites

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The ranges of blocks that may be left out; none: the whole trunk is one."""
        sites: Any = () if self.parts() or self.sites == "trunk" else self.sites
        return (sites,) if sites and isinstance(sites[0], int) else sites

    def trunk_owners(self) -> tuple[str, ...]:
        return (self.trunk,) if isinstance(self.trunk, str) else self.trunk or ()
