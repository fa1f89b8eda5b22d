"""The config: every knob of a compiled cache, checked when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch

from . import checks
from .estimators import DCTA, FeedbackDCTA, SecondOrderDCTA
from .gates import EstimateError, ProbeError
from .policy import Decider, EstimateGate, Estimator, Gate


@dataclass(frozen=True, kw_only=True)
class DiCacheConfig:
    """How a cut model decides and estimates.

    The bare default is meant to be safe on a model that nobody has tuned: it needs no number of steps, reuses only
    while the probe has hardly moved, and never more than three steps in a row. `preset` gives the published rules.

    Raises TypeError or ValueError, naming the field, for a value of the wrong type, out of range or contradictory.
    """

    threshold: float = 0.05
    """Reuse while the accumulated error stays below this; 0 never reuses, `inf` always. The lowest that the paper
    measures (table of HunyuanVideo: 35 dB, 1.8x); it uses 0.4 on FLUX and 0.1 to 0.2 on video models."""

    probe_depth: int = 1
    """Blocks that run on every step. The paper takes 1 on every model; more costs speed and gains little. 0: none, so
    that the trunk's input alone decides, and gamma tells how far that has moved."""

    gamma_range: tuple[float, float] = (1.0, 1.5)
    """Where gamma is clipped: 1 is plain reuse, above it extrapolates. The FLUX and HunyuanVideo scripts' range."""

    order: Literal[1, 2] = 1
    """The estimate's. 1, the paper's: on the line through the last two anchors. 2: with the bend of the parabola
    through the last three, damped with the distance, for two more tensors. Pays with error="estimate" and with
    probe_depth=0."""

    feedback: float = 0.0
    """How much of what the estimates have been short of, as each deep step shows, a reused step gives back: 1, all of
    it at once, or a share of what is left. 0: nothing, as published. Keeps errors of early steps from adding up on a
    schedule that skips them; for one more tensor, and with `order=1`. With it `gamma_range` can be wide."""

    error: Literal["probe", "probe_minus_input", "estimate"] = "probe"
    """What is compared with the threshold. "probe", the paper's choice: the relative change of h, accumulated.
    "probe_minus_input": its distance to that of x, accumulated (`delta_minus` in the scripts, which needs thresholds
    about five times smaller). "estimate": how far off the estimator is on the probe itself, in this step alone."""

    comparison: Literal["<", "<="] = "<"
    """How the accumulated error is compared with the threshold: `<` in the FLUX and WAN scripts, `<=` in Hunyuan's."""

    warmup_steps: int = 3
    """First steps of a generation that always run deep. Three give two anchors one step apart, and an error to start
    from, after the first steps, which change most."""

    warmup_ratio: float | None = None
    """First share of the steps that always runs deep, besides `warmup_steps`; needs the number of steps. The
    scripts' 0.2. None: no such rule."""

    warmup_inclusive: bool = False
    """Whether step int(ratio * N) itself is forced: the FLUX script counts `i <= int(ratio * N)`, the others `<`."""

    final_steps: int = 0
    """Last steps of a generation that always run deep; needs the number of steps. 1 in the FLUX script."""

    deep_steps: tuple[int, ...] = ()
    """More steps of a generation, counted from 0, that always run deep. With `threshold=inf` and
    `max_consecutive_skips=None` they and the other forced ones are the whole schedule (cache-dit's step masks)."""

    max_consecutive_skips: int | None = 3
    """Reused steps in a row before one is run deep; None: no limit, as in the scripts. 3 bounds how old an anchor can
    get when the threshold turns out too high for a model."""

    num_steps: int | None = None
    """Steps of a generation, for the rules that need it. None: taken from the running diffusers pipeline."""

    streams: Literal["auto", 1] = "auto"
    """"auto": a call belongs to the stream that `stream` or diffusers' `cache_context` names, else calls that share a
    timestep are numbered, which reads the timestep on the host. 1: unnamed calls are all of one stream."""

    joint: bool = False
    """Whether the calls of one step, such as the two of guidance, decide together: the first one at a timestep decides,
    the others do as it did. Guidance multiplies what sets its two calls apart, so one that is estimated beside one that
    is not costs more than two. Streams named "request/cond" and "request/uncond" are of one request, and so are all
    whose names have no "/", unnamed ones too: requests side by side need names. False, as in the scripts: each stream
    decides by itself."""

    state_dtype: torch.dtype | None = None
    """Floating dtype in which tensors are kept between steps. None: each stream's own. In float8 each row (the last
    dimension) has a float32 scale beside it; what differences are taken of stays in the stream's own dtype."""

    timestep_input: str | None = None
    """The name of the model's timestep argument. None: found by its name, or by the sine that is taken of it."""

    trunk: str | tuple[str, ...] | None = None
    """Module path of the ModuleList that holds the blocks, or several in order. None: found."""

    lowering: Literal["inductor", "eager"] = "inductor"
    """"eager" runs the cut graph uncompiled: bit-exact, for debugging."""

    engine: Literal["auto", "conditional", "graphs", "calls", "cond"] = "auto"
    """How the branch is taken. "conditional": one CUDA graph with the branch inside of it; "graphs": CUDA graphs, of
    which the host picks the second by the first one's result; "calls": the host calls one piece, reads its result, and
    calls another; "cond": one graph with a `torch.cond`. "auto" takes the first of these that the model and its device
    can have, and on a CPU or with `lowering="eager"` the third. A named engine that cannot be had is an error."""

    kernels: Literal["inductor", "triton"] = "inductor"
    """What computes the gate's statistics and the estimate: Inductor's own code, or a Triton kernel for each (on CUDA;
    elsewhere plain PyTorch). The second takes a gate and an estimator that have the forms; the default ones do."""

    strict: bool = False
    """Raise where a graph cannot be cut, instead of running it uncached with a warning. Small fragments around a graph
    break run uncached in silence all the same."""

    gate: Gate | EstimateGate | None = None
    """Another gate than the probe's error. `threshold`, `error` and `comparison` are then its own affair."""

    estimator: Estimator | None = None
    """Another estimator than the two-anchor one. `gamma_range`, `order`, `feedback` and, without a probe, what it goes
    along (of `DCTA`: `along="input"`) are then its own affair."""

    def __post_init__(self) -> None:
        for name in ("trunk", "gamma_range", "deep_steps"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        checks.check(self)

    @classmethod
    def preset(cls, name: Literal["flux", "hunyuan", "wan"], **overrides: Any) -> DiCacheConfig:
        """The rules of one of the three published scripts (github.com/Bujiazi/DiCache, commit dd7f0de).

        They count in shares of a generation, so outside of a diffusers pipeline they need `num_steps`.
        Raises ValueError for an unknown name, TypeError for an unknown field.
        """
        if name not in _PRESETS:
            raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(map(repr, _PRESETS))}")
        return cls(**{**_PRESETS[name], **overrides})

    def options(self) -> dict[str, Any]:
        """This config as the `options` of torch.compile."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def needs_num_steps(self) -> bool:
        return self.warmup_ratio is not None or self.final_steps > 0

    def counts_steps(self) -> bool:
        """Whether generations can be told apart without a timestep: all calls are of one stream, of known length."""
        return self.streams == 1 and self.num_steps is not None

    def forced_steps(self, num_steps: int | None) -> tuple[int, int | None]:
        """(steps of warm-up, index from which every step is forced or None) for a generation of that many steps."""
        warmup, last = self.warmup_steps, None
        if num_steps is not None:
            if self.warmup_ratio is not None:
                warmup = max(warmup, int(self.warmup_ratio * num_steps) + self.warmup_inclusive)
            if self.final_steps:
                last = max(num_steps - self.final_steps, 0)
        return warmup, last

    def make_gate(self) -> Decider:
        if self.gate is not None:
            return self.gate
        if self.error == "estimate":
            return EstimateError(self.threshold, self.comparison)
        return ProbeError(self.threshold, self.error, self.comparison)

    def make_estimator(self) -> Estimator:
        if self.estimator is not None:
            return self.estimator
        along: Literal["probe", "input"] = "probe" if self.probe_depth else "input"
        if self.feedback:
            return FeedbackDCTA(self.gamma_range, along, self.feedback)
        return (DCTA if self.order == 1 else SecondOrderDCTA)(self.gamma_range, along)

    def trunk_owners(self) -> tuple[str, ...]:
        if self.trunk is None:
            return ()
        return (self.trunk,) if isinstance(self.trunk, str) else self.trunk


_PRESETS: dict[str, dict[str, Any]] = {
    "flux": {
        "threshold": 0.4,
        "warmup_steps": 0,
        "warmup_ratio": 0.2,
        "warmup_inclusive": True,
        "final_steps": 1,
        "max_consecutive_skips": None,
    },
    "hunyuan": {
        "threshold": 0.1,
        "comparison": "<=",
        "warmup_steps": 0,
        "warmup_ratio": 0.2,
        "max_consecutive_skips": None,
    },
    "wan": {
        "threshold": 0.08,
        "gamma_range": (1.0, 2.0),
        "warmup_steps": 0,
        "warmup_ratio": 0.2,
        "max_consecutive_skips": None,
    },
}
