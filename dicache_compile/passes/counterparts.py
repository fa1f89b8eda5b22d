"""Looks for the counterparts of a value that leaves the deep region: where it enters the trunk and leaves the probe.

Blocks of one form say so themselves: what block i + 1 takes from block i stands at the same place of block i (`links`).
Names of operators are asked where that tells nothing, as of blocks of several kinds.
Requires: a region for every node. Ensures: nothing is added to the graph before `Search.emitted` is asked.
Not handled: a value that neither form nor a residual path leads back, unless only one of its shape goes from probe to
deep; parts of sequences whose length is not fixed (the whole is taken).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from torch import fx

from ..errors import NoCounterpartError, NotCarriedError, TokenOrderError
from ..graph import operators, values
from ..graph.dataflow import Dataflow
from ..graph.layout import Window, is_counted, is_like, size_of, traced_back
from ..graph.links import Link
from ..graph.residual_path import Path, Step, Trail, residual_path, residual_walk
from ..plan import Region, Trunk
from .joins import parts_of
from .parts import part_of
from .replay import replay, why_not_replayable


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands in an earlier one."""

    node: fx.Node
    window: Window | None  # which part of the node; None: all of it
    path: Path | None = None  # from the value back to the node, where it has to be brought into order; None: it is


@dataclass(frozen=True, slots=True)
class Found:
    """A value that leaves the deep region, or a part of one, and its counterparts."""

    y: fx.Node
    part: Window | None
    x: Place
    h: Place


@dataclass(frozen=True, slots=True)
class Search:
    """What the counterparts of a deep result are looked for in."""

    flow: Dataflow
    trunk: Trunk
    probe_depth: int
    regions: dict[fx.Node, Region]
    from_latents: set[fx.Node]
    links: tuple[Link, ...]  # between the blocks

    def counterparts(self, y: fx.Node) -> list[Found]:
        """Those of a result; of one that was joined of several and has none itself, those of each part."""
        recorded = values.tensor(y)
        if recorded is None or not (recorded.is_floating_point() or recorded.is_complex()):
            kind = "no tensor" if recorded is None else f"of {recorded.dtype}"
            raise NotCarriedError(f"the deep region's result `{y.name}` is {kind}, of which there is no estimate", y)
        self._check_order(y)
        if (found := self._by_form(y)) is not None:
            return [found]
        try:
            return [self._found(y, None)]
        except NoCounterpartError:
            with suppress(NoCounterpartError):
                if parts := parts_of(y, self.regions):
                    return [self._found(y, part) for part in parts]
            raise

    def emitted(self, place: Place) -> fx.Node:
        """The value at a place, in the order of y; adds to the graph what it takes."""
        if place.path is None:
            return part_of(place.node, place.window, self.regions)
        return replay(place.path, place.window, self.flow, self.regions)

    def _found(self, y: fx.Node, part: Window | None) -> Found:
        if Region.PROBE not in self.regions.values():  # what enters the trunk is all that is known of a step
            entered = self._place(y, part, (y,), self._is_before, latents=True)
            if entered is None:
                raise self._no_counterpart(y, "where the trunk starts")
            return Found(y, part, entered[0], entered[0])
        left = self._place(y, part, (y,), self._is_probe, latents=False)
        if left is None and part is None and (only := self._only_candidate(y)) is not None:
            left = Place(only, None), (only,)
        if left is None:
            raise self._no_counterpart(y, "in the probe's results")
        entered = self._place(y, part, left[1], self._is_before, latents=True)
        if entered is None:
            raise self._no_counterpart(y, "where the trunk starts")
        return Found(y, part, entered[0], left[0])

    def _place(
        self, y: fx.Node, part: Window | None, so_far: Path, is_there: Callable[[fx.Node], bool], latents: bool
    ) -> tuple[Place, Path] | None:
        """Where a part of y stands in an earlier value that `is_there`, and the path from y to it.

        The search goes on from the end of a path that leads back from y. With `latents` a value that is made from them
        comes before any other: a block may add a condition as it is, `x + project(pose)`.
        """
        places: dict[fx.Node, Window | None] = {}

        def stands(step: Step, trail: Trail) -> bool:
            if not is_there(step[0]):
                return False
            found = self._stands(y, part, (*so_far[:-1], *trail()), step)
            if found is not False:
                places[step[0]] = found if isinstance(found, Window) else None
            return found is not False

        def stands_denoised(step: Step, trail: Trail) -> bool:
            return step[0] in self.from_latents and stands(step, trail)

        def can_be_brought(step: Step, trail: Trail) -> bool:
            path = (*so_far[:-1], *trail())
            if not is_there(step[0]) or values.tensor(step[0]) is None or is_counted(path):
                return False
            return why_not_replayable(path, part, self.flow, self.regions) is None

        here = traced_back(so_far, part) if not is_counted(so_far) else False
        start = (so_far[-1], here if isinstance(here, Window) else part if len(so_far) == 1 else None)
        found = residual_walk(start, stands, stands_denoised if latents else None)
        if found is not None:
            (node, _), trail = found
            return Place(node, places[node]), (*so_far[:-1], *trail)
        found = residual_walk(start, can_be_brought)
        if found is None:
            return None
        (node, _), trail = found
        path = (*so_far[:-1], *trail)
        return Place(node, part, path), path

    def _check_order(self, y: fx.Node) -> None:
        """Raises TokenOrderError where y's tokens came out of the probe in another order that cannot be followed.

        The form of the blocks says nothing of that.
        """

        def shuffled(step: Step, trail: Trail) -> bool:
            came_from = self._is_probe(step[0]) and values.same_size(step[0], y)
            path = trail() if came_from else ()  # parts are looked at one by one
            return any(map(operators.shuffles, path)) and not any(map(operators.joins, path))

        found = residual_walk((y, None), shuffled)
        reason = why_not_replayable(found[1], None, self.flow, self.regions) if found is not None else None
        if reason is not None:
            raise TokenOrderError(reason)

    def _stands(self, y: fx.Node, part: Window | None, path: Path, step: Step) -> Window | bool:
        """Where y, or a part of it, stands in a node, every element at its place; False where it does not."""
        if is_counted(path):  # of which no point can be followed: the sizes and the order of joining have to do
            window = step[1]
            known = not any(map(operators.shuffles, path))
            return (window or True) if known and is_like(step, y) else False
        found = traced_back(path, part)
        if found is True:
            return size_of(y, part) == values.size_text(step[0])
        return found if found and is_like((step[0], found), y, part) else False

    def _is_probe(self, node: fx.Node) -> bool:
        return self.regions.get(node) is Region.PROBE

    def _is_before(self, node: fx.Node) -> bool:
        return node.op in ("placeholder", "get_attr") or self.regions.get(node) is Region.PROLOGUE

    def _by_form(self, y: fx.Node) -> Found | None:
        """The counterparts of what the last block hands on, in whatever way, or of a part of it; None where it is not
        the blocks' form that tells them: of several kinds of blocks, or where they hand on another layout or order.
        """
        for link in sorted(self.links, key=lambda link: link.entries[0] not in self.from_latents):
            x, h = link.entries[0], link.entries[self.probe_depth]
            path = residual_path(y, partial(operator.is_, link.exit))
            if path is None or not self._is_before(x) or not (self._is_probe(h) or not self.probe_depth):
                continue
            part = self._stands(y, None, path, (path[-1], None))
            if part and self._keeps_order(link):
                window = part if isinstance(part, Window) else None
                return Found(y, None, Place(x, window), Place(h, window))
        return None

    def _keeps_order(self, link: Link) -> bool:
        """Whether nothing is known that would put a link's elements at other places on their way through the blocks."""
        for entry in dict.fromkeys((link.entries[self.probe_depth], link.entries[0])):
            path = residual_path(link.exit, partial(operator.is_, entry))
            if path is not None and self._stands(link.exit, None, path, (entry, None)) is not True:
                return False
        return True

    def _only_candidate(self, y: fx.Node) -> fx.Node | None:
        """The only value of y's shape that goes from the probe to the deep blocks: for trunks with no residual path."""
        found = [
            node
            for node in self.flow.order
            if self._is_probe(node)
            and values.same_size(node, y)
            and any(self.regions.get(user) is Region.DEEP for user in node.users)
        ]
        return found[0] if len(found) == 1 else None

    def _no_counterpart(self, y: fx.Node, missing: str) -> NoCounterpartError:
        shape = ", ".join(values.size_text(y) or ())
        what = f"the deep region's result `{y.name}` of shape ({shape})"
        return NoCounterpartError(f"{what} has no counterpart {missing}", y)
