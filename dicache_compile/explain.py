"""What is cut, or would be, and why not where it is not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from .config import DiCacheConfig
from .cost import Part, Uncut, left_whole, parts_of, skippable_share, work_of
from .cut import Cut, cut, told_timestep
from .errors import UnsupportedGraphError
from .graph import values
from .graph.fragment import Function, about_break, broken_function, resumed_function
from .graph.input_names import input_name
from .graph.work import trunk_work
from .mistakes import told
from .passes.pipeline import Passed
from .passes.printing import did, plan_text
from .plain import plain
from .plan import Partition, Trunk
from .program import Slot
from .subject import Subject, subjects, why_nothing_ran
from .tracing import Traced, trace

_LITTLE = 0.2  # of the operations


@dataclass(frozen=True, slots=True)
class StreamShape:
    """A value that the trunk carries and a reused step stands in for."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class SiteReport:
    """What one rule decides on."""

    probe: tuple[str, ...]  # the blocks that run whenever it is asked
    deep: tuple[str, ...]  # those that a reused step skips
    parts: str  # which parts of these, "attention" say; "": all of them

    @property
    def skips(self) -> str:
        return (self.parts + " of " if self.parts else "") + _span(self.deep)


@dataclass(frozen=True, slots=True)
class PassReport:
    """What a pass did to the graph."""

    name: str
    seconds: float
    did: str  # in a line
    graph: str  # the text of the graph after it


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a model is cut; `str()` of it is for people."""

    cached: bool
    reason: str | None  # why not, in one sentence; None where it is cached
    graphs: int  # that Dynamo makes of the model; 1 where it is one full graph
    trunk: tuple[str, ...]  # the ModuleLists, in order
    blocks: tuple[str, ...]  # all blocks by module path, in order
    probe: tuple[str, ...]  # those that run on every step
    deep: tuple[str, ...]  # those that a reused step skips
    beside: tuple[str, ...]  # those outside of `sites`, which run on every step
    streams: tuple[StreamShape, ...]  # the denoised one first
    timestep: str | None  # the input that tells generations apart; None: it is that of an earlier graph, or steps count
    skippable: float  # share of the floating-point operations in the deep part, from 0 to 1
    state_bytes: int  # that one stream keeps
    config: DiCacheConfig | None = None  # in force; None where the model is not cached
    uncut: tuple[Uncut, ...] = ()  # lists of blocks beside the trunk that are as heavy, and run on every step
    engine: str | None = None  # how the last step took its branch; None where nothing is compiled
    engine_reason: str | None = None  # why it did not as the config or the device would have it; None where it did
    rules: tuple[SiteReport, ...] = ()  # what each rule decides on, in the config's order
    parts: tuple[Part, ...] = ()  # how the operations are spread, in the order in which parts run
    passes: tuple[PassReport, ...] = ()  # what each pass did, with `passes=True`
    name: str = ""  # in a pipeline with several compiled models: "transformer_2"
    others: tuple[Explanation, ...] = ()  # of such a pipeline's other models

    def __str__(self) -> str:
        return "\n".join(f"{one.name}: {one._text()}" if one.name else one._text() for one in (self, *self.others))

    def _text(self) -> str:
        passes = self._passes()
        if not self.cached:
            return "\n".join((f"not cached: {self.reason}", *passes))
        owners = Counter(block.rpartition(".")[0] for block in self.blocks)
        lists = ", ".join(f"{owner} ({blocks} blocks)" for owner, blocks in owners.items())
        streams = ", ".join(f"{list(s.shape)} {str(s.dtype).removeprefix('torch.')}" for s in self.streams)
        little = ": little to gain" if self.skippable < _LITTLE else ""
        lines = (
            f"cached, in {'one full graph' if self.graphs == 1 else f'one of {self.graphs} graphs'}",
            f"  trunk      {lists}",
            *self._rules(),
            *((f"  beside     {_span(self.beside)}, on every step",) if self.beside else ()),
            f"  streams    {streams}",
            f"  timestep   {self.timestep or 'not an input of this graph'}",
            f"  skippable  {self.skippable:.1%} of the floating-point operations{little}",
            *(f"  uncut      {_left(stack)}" for stack in self.uncut),
            f"  state      {self.state_bytes / 2**20:.2f} MiB a stream",
            f"  config     {self.config.brief() if self.config is not None else 'unknown'}",
        )
        if self.engine is not None:
            reason = f" ({self.engine_reason})" if self.engine_reason is not None else ""
            lines = (*lines, f"  engine     {self.engine}{reason}")
        return "\n".join((*lines, *passes))

    def to_dict(self) -> dict[str, Any]:
        """All of it, by field, in what JSON can hold: `plain` says how."""
        found: dict[str, Any] = plain(self)
        return found

    def _rules(self) -> tuple[str, ...]:
        if len(self.rules) == 1:
            return f"  probe      {_span(self.probe)}", f"  deep       {self.rules[0].skips}"
        told = enumerate(self.rules, start=1)
        return tuple(f"  rule {n:<5} probe {_span(one.probe)}; deep {one.skips}" for n, one in told)

    def _passes(self) -> tuple[str, ...]:
        width = max((len(one.name) for one in self.passes), default=0)
        told = (f"    {one.name:<{width}} {one.seconds:8.3f} s  {one.did}" for one in self.passes)
        return ("  passes", *told) if self.passes else ()


def explain(model: object, *args: Any, passes: bool = False, **kwargs: Any) -> Explanation:
    """What is cut of a model, or would be, without compiling it.

    With the arguments of one call of the model, traces that call. Only where Dynamo makes several graphs of it, it runs
    once, too, uncompiled; else tensors may be without values, fake or on the meta device. Without arguments, tells of
    the last graph that was compiled. The config is the compiled model's own; of a model that is not compiled, that of
    its last compiled call, else the default one. `model` may be a pipeline, without arguments: of several compiled
    models it tells of the first, and `others` has the rest.

    With `passes`, which needs arguments, it tells what each pass did to the graph, and has the graph's text after each.

    Raises TypeError if `model` is neither, ValueError if there are neither arguments nor a compiled graph.
    """
    one, *more = subjects(model)
    if args or kwargs:
        if one.name:
            raise TypeError(f"explain traces one call of the model itself: give it pipe.{one.name} and its arguments")
        config = one.config or DiCacheConfig()
        return dataclasses.replace(_of_graphs(trace(one.model, args, kwargs), config, passes), config=config)
    if passes:
        raise ValueError("passes=True runs the passes on one call of the model: give its arguments, too")
    if not any(each.sessions or each.refused or each.others for each in (one, *more)):
        raise ValueError("this model has no cut graph yet: call it once, or give explain the arguments of a call")
    first, *others = (dataclasses.replace(_last(each), name=each.name if more else "") for each in (one, *more))
    return dataclasses.replace(first, others=tuple(others))


def _last(one: Subject) -> Explanation:
    """Of the last graph that was compiled of a model."""
    if one.sessions:
        session = one.sessions[-1]
        return dataclasses.replace(
            _of_cut(session.last_cut, graphs=1),
            config=session.told.config,
            engine=session.last_engine.name,
            engine_reason=session.last_engine.reason,
        )
    if one.refused is not None:
        return _not_cached(one.refused.reason, 1)
    return _not_cached(why_nothing_ran(one), 1 if one.others else 0)


def _of_graphs(traced: list[Traced], config: DiCacheConfig, passes: bool) -> Explanation:
    cuts: list[tuple[Cut, list[PassReport]]] = []
    refused: list[tuple[fx.GraphModule, UnsupportedGraphError, list[PassReport]]] = []
    telling: set[Function | None] = set()
    with torch.no_grad():
        for gm, examples in traced:
            reports: list[PassReport] = []
            watch = partial(_report, reports) if passes else None
            try:
                cuts.append((cut(gm, examples, config, resumed_function(gm) in telling, watch), reports))
            except UnsupportedGraphError as error:
                refused.append((gm, error, reports))
            if told_timestep(gm, config) is not None:
                telling.add(broken_function(gm))
        if cuts:
            # As among fragments at run time: the heaviest, and of equal ones the last.
            found, reports = max(reversed(cuts), key=lambda one: trunk_work(Trunk(one[0].partition.all_blocks)))
            return dataclasses.replace(_of_cut(found, graphs=len(traced)), passes=tuple(reports))
    if not refused:
        return _not_cached("Dynamo made no graph of this call", graphs=0)
    # Of several graphs the largest is the one that was worth cutting.
    largest, refusal, reports = max(refused, key=lambda one: len(one[0].graph.nodes))
    reason = told(largest, refusal).reason
    breaks = [about for gm, _ in traced if (about := about_break(gm)) is not None]
    more = breaks[:1] if reason == refusal.reason else []
    return dataclasses.replace(_not_cached("; ".join((reason, *more)), len(traced)), passes=tuple(reports))


def _report(reports: list[PassReport], passed: Passed) -> None:
    reports.append(PassReport(passed.name, passed.seconds, did(passed), plan_text(passed.after)))


def _not_cached(reason: str, graphs: int) -> Explanation:
    return Explanation(False, reason, graphs, (), (), (), (), (), (), None, 0.0, 0)


def _of_cut(found: Cut, graphs: int) -> Explanation:
    carried = [values.tensor(value.x) for one in found.partitions for value in one.carried]
    work = work_of(found.plan)
    numbers = sorted({one.rule for one in found.partitions})
    rules = tuple(_site([one for one in found.partitions if one.rule == number]) for number in numbers)
    order = {block.path: place for place, block in enumerate(found.partition.all_blocks)}
    return Explanation(
        cached=True,
        reason=None,
        graphs=graphs,
        trunk=Trunk(found.partition.all_blocks).owners,
        blocks=tuple(block.path for block in found.partition.all_blocks),
        probe=tuple(sorted({path for rule in rules for path in rule.probe}, key=lambda path: order[path])),
        deep=tuple(sorted({path for rule in rules for path in rule.deep}, key=lambda path: order[path])),
        beside=tuple(block.path for block in found.plan.beside),
        streams=tuple(StreamShape(values.shape_hint(known), known.dtype) for known in carried if known is not None),
        timestep=input_name(found.inputs.timestep) if found.inputs.timestep is not None else None,
        skippable=skippable_share(found.plan, work),
        uncut=left_whole(found.plan, work),
        rules=rules,
        parts=parts_of(found.plan, work),
        state_bytes=sum(_bytes(slot) for slot in found.program.slots),
    )


def _site(cuts: list[Partition]) -> SiteReport:
    """What a rule with these cuts decides on."""
    probe, deep = [], []
    for one in cuts:
        paths = [block.path for block in one.trunk.blocks]
        probe += paths[: one.probe_depth]
        deep += paths[one.probe_depth :]
    return SiteReport(tuple(probe), tuple(dict.fromkeys(deep)), cuts[0].parts)


def _left(stack: Uncut) -> str:
    if stack.again:
        advice = f"{stack.owner}, called again: call the compiled denoiser by itself, not two calls in one graph"
    else:
        advice = f"{stack.owner}: trunk={stack.owner!r} may cut it instead"
    return f"{stack.share:.1%} of the operations in {advice}"


def _bytes(slot: Slot) -> int:
    recorded = values.tensor(slot.like) if slot.like is not None else None
    shape = slot.shape if recorded is None else slot.shape_of(values.shape_hint(recorded))
    return torch.Size(shape).numel() * slot.dtype.itemsize


def _span(paths: tuple[str, ...]) -> str:
    if not paths:
        return "none"
    return paths[0] if len(paths) == 1 else f"{paths[0]} ... {paths[-1]} ({len(paths)})"
