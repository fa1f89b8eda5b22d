"""One rule: when some sites of a model are reused, and what stands in for them; checked when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from . import checks
from .asked_sites import asked_sites
from .estimators import DCTA, FeedbackDCTA, SecondOrderDCTA
from .fields import RUN_TIME
from .gates import EstimateError, ProbeError
from .passes.whole_model import MODEL
from .plan import AskedSite
from .qualities import Quality, settle
from .rules import Decider, EstimateGate, Estimator, Gate, GuidedEstimator
from .schedules import Schedule

_Rule = TypeVar("_Rule", bound="SiteRule")
_DEFAULT = "quality='balanced'"


@dataclass(frozen=True, kw_only=True, repr=False)
class SiteRule:
    """When some sites are reused, and what stands in for them.

    A `DiCacheConfig` is such a rule itself. Several, each for sites of its own, go into its field `rules`.

    In the fields' texts x is the value that enters the trunk, h what leaves the probe, y what leaves the trunk. An
    anchor is what a deep step leaves behind for later estimates.

    Raises TypeError or ValueError, naming the field, for a value of the wrong type, out of range or contradictory.
    """

    quality: Quality = "balanced"
    """How near a picture stays to the uncached one: "high", "balanced" or "fast". It sets `threshold`, `error`,
    `order`, `gamma_range` and `max_consecutive_skips` where they are not given."""

    threshold: float | None = None
    """A step is reused while its error is below this. 0 never reuses; `inf` reuses every step that is not forced. None:
    as `quality` says: 0.03, 0.1 or 0.2. With error="probe" the paper uses 0.4 on FLUX, 0.05 to 0.2 on video."""

    probe_depth: int = 1
    """How many blocks run on every step. The paper takes 1 on every model; more costs speed and gains little. With 0 no
    block does: the trunk's input is measured in place of the probe's result."""

    sites: Any = "trunk"
    """Which blocks of the trunk may be left out, but for the probe, which is the first of them. "trunk": all. Or from
    which to which, as in a slice: with (0, -8) the last eight blocks run on every step. Or several such ranges, in
    order, of which a step leaves out all or none: x and y are then each range's own, and h is the first one's. Or parts
    of all blocks, on a schedule: "attention", "cross_attention", "mlp"; or of some, ("mlp", 0, 8); or several of
    these. "model": everything from the model's input to its result, which are then x and y; needs `probe_depth=0`."""

    gamma_range: tuple[float, float] | None = None
    """How far the estimate may go: 1 stays at the newest anchor, above 1 goes on in the direction from the older anchor
    to the newest. None: (1, 2) where the estimate is tried on the probe, else (1, 1.5), the range of the FLUX and
    HunyuanVideo scripts."""

    order: Literal[1, 2] | None = None
    """1, as published: the estimate is on the line through the last two anchors. 2: on the curve through the last
    three, which is flattened the further it goes. Keeps two more tensors a stream. None: 2 where the estimate is tried
    on the probe and `feedback` is 0, else 1."""

    feedback: float = 0.0
    """From 0 to 1. A deep step shows how much the estimates before it were off. With 1 the next reused step adds that
    amount back; with less it adds that share, and later steps that share of the rest. 0, as published: nothing. Helps
    on schedules that reuse early steps, and lets `gamma_range` be wide. Keeps one more tensor a stream. Only with
    `order=1`."""

    error: Literal["probe", "probe_minus_input", "estimate"] | None = None
    """What is compared with the threshold. "estimate": how far off the estimate is when it is tried on the probe, whose
    result is known; in this step alone. "probe", as published: how much h changes from step to step, added up since the
    last deep step. "probe_minus_input": the same, of the distance between that change and x's (`delta_minus` in the
    scripts; needs thresholds about five times smaller). None: "estimate" where there is a probe, at one site, and an
    estimator that can be tried on it; else "probe"."""

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

    max_consecutive_skips: int | Literal["auto"] | None = "auto"
    """After this many reused steps in a row one runs deep. None: no limit, as in the scripts. "auto": 2, and 3 with
    quality="fast". That bounds how old an anchor can get if the threshold turns out too high for a model."""

    carried: Literal["auto", "residual", "value"] = "auto"
    """What is kept of what the blocks give. "residual": y - x, which is added to x again. "value": y as it is, for
    blocks that do not add to what they are given; it needs no x, and with a schedule no h. "auto": the residual, which
    is held against the truth on the first two deep steps; of the whole model the value."""

    gate: Gate | EstimateGate | None = None
    """Decides in place of the default rule, and of `threshold`, `error` and `comparison`."""

    estimator: Estimator | None = None
    """Estimates in place of the default rule, and of `gamma_range`, `order` and `feedback`. Without a probe the
    estimator itself must say what it follows (`DCTA`: `along="input"`)."""

    def __post_init__(self) -> None:
        for name in ("sites", "gamma_range", "deep_steps"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(tuple(part) if isinstance(part, list) else part for part in value))
        checks.check_rule(self)

    def brief(self) -> str:
        """The fields that are not as in the default, as "threshold=0.1, num_steps=28"; else the quality."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = (f"{f.name}={found[f.name]!r}" for f in dataclasses.fields(self) if found[f.name] != f.default)
        return ", ".join(changed) or _DEFAULT

    def __repr__(self) -> str:
        fields = self.brief()
        return f"{type(self).__name__}({'' if fields == _DEFAULT else fields})"

    def settled(self: _Rule) -> _Rule:
        """This rule with a value in every field that something reads: `quality` gives those that are None."""
        return settle(self)

    def same_graph(self, other: SiteRule) -> bool:
        """Whether both are compiled to the same graph: they differ in run-time fields at most."""
        ours, theirs = self.settled(), other.settled()
        return (self.schedule is None) == (other.schedule is None) and all(
            alike(getattr(ours, field.name), getattr(theirs, field.name))
            for field in dataclasses.fields(SiteRule)
            if field.name not in RUN_TIME
        )

    def needs_num_steps(self) -> bool:
        if self.schedule is not None:
            return self.schedule.needs_num_steps()
        return self.warmup_ratio is not None or self.final_steps > 0 or self.deep_shares()

    def deep_shares(self) -> bool:
        """Whether `deep_steps` are shares of a generation."""
        return any(isinstance(step, float) and step < 1 for step in self.deep_steps)

    def make_gate(self) -> Decider | None:
        """What decides; None: the schedule does."""
        rule = self.settled()
        if rule.threshold is None or rule.error is None:  # nothing reads them
            return rule.gate
        if rule.error == "estimate":
            return EstimateError(rule.threshold, rule.comparison)
        return ProbeError(rule.threshold, rule.error, rule.comparison)

    def make_estimator(self) -> Estimator:
        rule = self.settled()
        if rule.estimator is not None:
            return rule.estimator
        assert rule.gamma_range is not None
        along: Literal["probe", "input"] = "probe" if self.probe_depth and len(self.asked_sites()) < 2 else "input"
        if self.feedback:
            return FeedbackDCTA(rule.gamma_range, along, rule.feedback)
        return (DCTA if rule.order == 1 else SecondOrderDCTA)(rule.gamma_range, along)

    def blocks_on_every_step(self) -> int:
        """How many blocks run on every step: none where nothing looks at them."""
        return self.probe_depth if self.make_gate() is not None or self.make_estimator().probes else 0

    def form(self) -> Literal["residual", "value"]:
        as_it_is = self.carried == "value" or (self.carried == "auto" and self.sites == MODEL)
        return "value" if as_it_is else "residual"

    def measures(self) -> bool:
        """Whether something is looked at before the decision."""
        return self.make_gate() is not None or self.make_estimator().probes

    def modulated(self) -> bool:
        """Whether the gate looks at what the first block gives to its first linear."""
        return isinstance(self.gate, Gate) and self.gate.looks_at == "modulated"

    def is_guided(self) -> bool:
        """Whether one of guidance's calls is estimated from another one."""
        return isinstance(self.estimator, GuidedEstimator)

    def asked_sites(self) -> tuple[AskedSite, ...]:
        """What `sites` says, one by one. Raises TypeError if that is none of what it may be."""
        return asked_sites(self.sites)

    def split(self) -> tuple[SiteRule, ...]:
        """The rule; of a table of schedules one for each of its rows."""
        rows = self.schedule.rows if self.schedule is not None else ()
        if not rows:
            return (self.settled(),)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(SiteRule)}
        pairs = zip(self.sites, rows, strict=True)
        return tuple(SiteRule(**{**fields, "sites": site, "schedule": row}) for site, row in pairs)


def alike(one: Any, other: Any) -> bool:
    """Whether two values of a field are compiled to the same graph: an estimator may say so itself."""
    of_its_own = getattr(one, "same_graph", None)
    return bool(of_its_own(other)) if callable(of_its_own) else bool(one == other)
