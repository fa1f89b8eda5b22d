"""The config: every knob of a compiled cache, checked when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch

from . import checks
from .fields import REPLACES, RUN_TIME
from .in_force import Rule
from .plan import Group
from .presets import fields_of
from .ranks import group_of
from .site_rule import SiteRule, alike


@dataclass(frozen=True, kw_only=True)
class DiCacheConfig(SiteRule):
    """The settings of a cached model: when a step is reused, and what stands in for its deep blocks (`SiteRule`).

    `quality` is the one setting that most need. The default needs no number of steps, tries its estimate on the probe
    before it reuses a step, and never reuses more than three in a row. `preset` gives the published rules.

    Raises TypeError or ValueError, naming the field, for a value of the wrong type, out of range or contradictory.
    """

    rules: tuple[SiteRule, ...] = ()
    """Several rules, each with `sites` of its own, which decide one after the other on every step: one range after
    another, or one inside of another, which is asked only where the outer one runs deep. The fields of `SiteRule` are
    then given in each of them."""

    num_steps: int | None = None
    """Steps of a generation, for the rules that need the number. None: as a pipeline or `generation` says."""

    streams: Literal["auto", 1] = "auto"
    """"auto": unnamed calls that share a timestep are numbered, each number a stream. That reads the timestep on the
    host. 1: all unnamed calls are one stream. Names are given by `stream`, `generation` and diffusers' pipelines."""

    max_streams: int = 16
    """How many streams of a model have state at a time. With one more the one unused for longest gives way; it starts
    anew when it comes back."""

    max_state_bytes: int | None = None
    """How many bytes the state of all streams of a model may take on the device. What more would need makes the stream
    unused for longest give way, as with `max_streams`; a stream that needs more by itself is refused before its first
    step, and so is a pool of `max_streams` requests that are rows. Captures and what runs on a step are not counted.
    None: no bound."""

    device_streams: int | None = None
    """How many streams have their state on the device at a time; that of the others waits in host memory, which changes
    no result. 1: it is fetched as a step begins. From 2 on the stream that is likely to come next is fetched while
    another one's step runs. It helps where many streams take turns. Requests that are rows of a batch stay on the
    device. None: all streams have it there."""

    joint: bool | None = None
    """Whether the calls of one step, such as the two of guidance, decide together: the first one at a timestep decides,
    and the others do as it did. Guidance multiplies the difference of its two calls. That is spoiled more if one of
    them is estimated and the other is not than if both are. Streams "a/cond" and "a/uncond" are of one request and
    decide together; so do all whose names have no "/", unnamed ones too. False, as in the scripts: each stream decides
    by itself. None: together, unless a schedule decides for all, or one call is estimated from another."""

    rows: Literal["together", "independent"] = "together"
    """What the rows of a batch do. "together": one error of all of them decides, and all are reused or none.
    "independent": each has an error, counters, anchors and generations of its own. The deep blocks run if any row needs
    them; a row that may be reused takes its estimate even then, so that it is what it would be among any others. The
    batch has to be the first dimension of the latents and of what the blocks carry."""

    state_dtype: torch.dtype | None = None
    """The floating dtype of the tensors that are kept between steps. None: each stream's own. Float8 keeps one float32
    scale a row (the last dimension) beside it; where differences decide something the stream's dtype is kept."""

    timestep_input: str | None = None
    """The name of the model's timestep argument. None: found by its name, or by the sine that is taken of it."""

    trunk: str | tuple[str, ...] | None = None
    """Module path of the ModuleList that holds the blocks, or several in the order in which they run. None: found."""

    lowering: Literal["inductor", "eager"] = "inductor"
    """"eager" runs the cut graph uncompiled: bit-exact, for debugging."""

    blocks: Literal["auto", "once", "whole"] = "auto"
    """"once": blocks that differ in nothing but their weights are compiled once, so that a deep model compiles in a
    fraction of the time. "whole": a piece of the graph is compiled as one, and kernels may reach from one block into
    the next; a step is a few percent faster on a CPU. "auto": once where the trunk has more than 16 blocks."""

    engine: Literal["auto", "conditional", "graphs", "calls", "cond"] = "auto"
    """How a step takes its branch. "conditional": one CUDA graph with the branch inside. "graphs": CUDA graphs; the
    host picks the second by the first one's result. "calls": the host calls one piece, reads the decision and calls
    another. "cond": one graph with a `torch.cond`. "auto": the first of these that model and device can have; on a CPU
    and with `lowering="eager"` it is "calls". A named engine that cannot be had is an error."""

    agree: Any = "auto"
    """Which ranks decide as one, where several make one picture. "auto": those whose collectives the blocks run, as
    in context parallelism or tensor parallelism. Or a ProcessGroup, a DeviceMesh of one dimension, or a `Ranks`, which
    also says what each rank has of the picture. None: each decides for itself. What decides is put together of all
    ranks in the graph before the decision. A schedule is the same on all ranks and needs none of it."""

    ranks_agree: bool = False
    """Whether all ranks decide alike without `agree`, as with a gate of your own that reduces its error. Then nothing
    is put together. Blocks that run collectives are not cached where neither is so, because ranks that decide apart
    wait for ever."""

    strict: bool = False
    """Whether a graph that cannot be cut is an error. False: it runs uncached, with a warning. Small fragments around
    a graph break run uncached without a word in either case."""

    def __post_init__(self) -> None:
        for name in ("trunk", "rules"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        super().__post_init__()
        checks.check(self)

    @classmethod
    def preset(cls, name: str, **given: Any) -> DiCacheConfig:
        """The rule of a published method: `preset("taylorseer", interval=6, order=1)`.

        "flux", "hunyuan" and "wan" are those of the three scripts of DiCache. `docs/methods.md` lists all, with their
        parameters and with what is not as published. What else is given is a field of the config, and takes the place
        of the method's. Rules that count in shares of a generation need `num_steps` outside of a diffusers pipeline.

        Raises ValueError for an unknown name or value, TypeError for an unknown field or a parameter that is missing.
        """
        fields, overrides = fields_of(name, given)
        by_given = [by for by in REPLACES if overrides.get(by) is not None]
        replaced = {field for by in by_given for field in REPLACES[by]}
        return cls(**{field: value for field, value in fields.items() if field not in replaced} | overrides)

    def options(self) -> dict[str, Any]:
        """This config as the `options` of torch.compile."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def adjusted(self, **fields: Any) -> DiCacheConfig:
        """This config with other run-time fields (`RUN_TIME`), which another config need not be compiled for.

        Raises TypeError for a field that the compiled graph depends on, ValueError for one that a gate or an estimator
        of the config's own has no use for, and what DiCacheConfig raises.
        """
        for name in fields:
            if name not in RUN_TIME and not (name == "estimator" and _another(self.estimator, fields[name])):
                known = name in {field.name for field in dataclasses.fields(self)}
                why = "is part of the compiled graph: compile the model again" if known else "is no field of the config"
                raise TypeError(f"{name}: {why}. At run time these can change: {', '.join(RUN_TIME)}")
        for by, replaced in REPLACES.items():
            owner = getattr(self, by)
            if owner is not None and (unread := [name for name in replaced if name in fields]):
                raise ValueError(f"{unread[0]}: nothing reads it, because the config has {by}={owner!r}")
        if "schedule" in fields and (self.schedule is None or fields["schedule"] is None):
            raise ValueError("schedule: at run time one takes another's place. To have one, or none, compile again")
        if self.rules and (unread := [name for name in fields if name not in ("rules", "num_steps")]):
            raise ValueError(f"{unread[0]}: nothing reads it, because the config has rules. Give all of them anew")
        found = dataclasses.replace(self, **fields) if fields else self
        if not found.alike(self):
            of = "rules" if "rules" in fields else "schedule"
            raise ValueError(f"{of}: these need another graph: only {', '.join(RUN_TIME)} may differ. Compile again")
        return found

    def settled(self) -> DiCacheConfig:
        return self if self.rules else super().settled()  # each rule has its own

    def alike(self, other: DiCacheConfig) -> bool:
        """Whether both are compiled to the same graph: they differ in run-time fields at most."""
        own = {field.name for field in dataclasses.fields(SiteRule)} | {"rules", *RUN_TIME}
        ours, theirs = self.all_rules(), other.all_rules()
        return (
            len(ours) == len(theirs)
            and all(one.same_graph(another) for one, another in zip(ours, theirs, strict=True))
            and all(
                getattr(self, field.name) == getattr(other, field.name)
                for field in dataclasses.fields(self)
                if field.name not in own
            )
        )

    def needs_num_steps(self) -> bool:
        return any(SiteRule.needs_num_steps(rule) for rule in self.all_rules())

    def counts_steps(self) -> bool:
        """Whether generations can be told apart without a timestep: all calls are of one stream, of known length."""
        return self.streams == 1 and self.num_steps is not None

    def all_rules(self) -> tuple[SiteRule, ...]:
        """What decides: the rules, or this one; one for each row of a table of schedules."""
        return tuple(one for rule in self.rules or (self,) for one in rule.split())

    def rules_in_force(self) -> tuple[Rule, ...]:
        """What a step decides and estimates with."""
        return tuple(
            Rule(rule.make_gate(), rule.make_estimator(), self.state_dtype, self.decides_jointly(), self.by_rows())
            for rule in self.all_rules()
        )

    def group(self) -> Group | Literal["auto"] | None:
        """The ranks that decide as one. Raises ValueError where this process is none of them."""
        return group_of(self.agree)

    def by_rows(self) -> bool:
        """Whether each row of a batch decides for itself."""
        return self.rows == "independent"

    def decides_jointly(self) -> bool:
        """Whether the streams of a request decide together."""
        rules = self.all_rules()
        if self.joint is not None:
            return self.joint
        return any(rule.schedule is None for rule in rules) and not any(rule.is_guided() for rule in rules)

    def trunk_owners(self) -> tuple[str, ...]:
        return (self.trunk,) if isinstance(self.trunk, str) else self.trunk or ()


def _another(estimator: Any, other: Any) -> bool:
    """Whether an estimator differs from one in numbers alone, which are told at run time."""
    return estimator is not None and alike(estimator, other)
