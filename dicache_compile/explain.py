"""What is cut, or would be, and why not where it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from .armed import reason_of
from .config import DiCacheConfig
from .cost import left_whole, parts_of, skippable_share, work_of
from .cut import Cut, cut, told_timestep
from .errors import UnsupportedGraphError
from .explanation import Explanation, PassReport, SiteReport, StreamShape
from .graph import values
from .graph.fragment import Function, about_break, broken_function, resumed_function
from .graph.input_names import input_name
from .graph.work import trunk_work
from .mistakes import told
from .passes.pipeline import Passed
from .passes.printing import did, plan_text
from .plan import Partition, Trunk
from .program import Slot
from .ranks import HELD
from .subject import Subject, subjects, why_nothing_ran
from .tracing import Traced, trace


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
        # A package has the explanation itself, and no graph.
        last = session.last_cut
        found = last if isinstance(last, Explanation) else of_cut(last)
        return dataclasses.replace(
            found,
            config=session.told.config,
            engine=session.last_engine.name,
            engine_reason=session.last_engine.reason,
            host_reason=reason_of(one.model),
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
            return dataclasses.replace(of_cut(found, graphs=len(traced)), passes=tuple(reports))
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


def of_cut(found: Cut, graphs: int | None = None) -> Explanation:
    """What is told of a cut graph; `graphs`: how many Dynamo made of the call, where they were counted."""
    carried = [values.tensor(value.x) for one in found.partitions for value in one.carried]
    work = work_of(found.plan)
    numbers = sorted({one.rule for one in found.partitions})
    rules = tuple(_site([one for one in found.partitions if one.rule == number]) for number in numbers)
    order = {block.path: place for place, block in enumerate(found.partition.all_blocks)}
    return Explanation(
        cached=True,
        reason=None,
        graphs=1 if graphs is None and found.is_alone else graphs,
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
        ranks=f"{group.size} decide as one, each with {HELD[group.hold]}" if (group := found.plan.ranks) else None,
        state_bytes=sum(_bytes(slot) for slot in found.program.slots),
        row_bytes=_row_bytes(found.program.slots),
    )


def _site(cuts: list[Partition]) -> SiteReport:
    """What a rule with these cuts decides on."""
    probe, deep = [], []
    for one in cuts:
        paths = [block.path for block in one.trunk.blocks]
        probe += paths[: one.probe_depth]
        deep += paths[one.probe_depth :]
    return SiteReport(tuple(probe), tuple(dict.fromkeys(deep)), cuts[0].parts)


def _bytes(slot: Slot) -> int:
    return torch.Size(_shape(slot)).numel() * slot.dtype.itemsize


def _row_bytes(slots: Sequence[Slot]) -> int:
    """Of each row of the batch; 0 where rows decide together."""
    if not any(slot.of_rows for slot in slots):
        return 0
    return sum(_bytes(slot) // _shape(slot)[0] for slot in slots if slot.like is not None)


def _shape(slot: Slot) -> tuple[int, ...]:
    recorded = values.tensor(slot.like) if slot.like is not None else None
    return slot.shape if recorded is None else slot.shape_of(values.shape_hint(recorded))
