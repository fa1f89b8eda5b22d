"""What is told of how a model is cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from .config import DiCacheConfig
from .cost import Part, Uncut
from .passes.whole_model import MODEL
from .plain import plain

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
        if self.parts == MODEL:
            return "the whole model"
        return (self.parts + " of " if self.parts else "") + span(self.deep)


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
    graphs: int | None  # that Dynamo makes of a call; 1: one full graph; None: several, which nobody counted
    trunk: tuple[str, ...]  # the ModuleLists, in order
    blocks: tuple[str, ...]  # all blocks by module path, in order
    probe: tuple[str, ...]  # those that run on every step
    deep: tuple[str, ...]  # those that a reused step skips
    beside: tuple[str, ...]  # those outside of `sites`, which run on every step
    streams: tuple[StreamShape, ...]  # the denoised one first
    timestep: str | None  # the input that tells generations apart; None: it is that of an earlier graph, or steps count
    skippable: float  # share of the floating-point operations in the deep part, from 0 to 1
    state_bytes: int  # that one stream keeps
    row_bytes: int = 0  # of it, of each row of the batch, where rows decide for themselves
    config: DiCacheConfig | None = None  # in force; None where the model is not cached
    uncut: tuple[Uncut, ...] = ()  # lists of blocks beside the trunk that are as heavy, and run on every step
    engine: str | None = None  # how the last step took its branch; None where nothing is compiled
    engine_reason: str | None = None  # why it did not as the config or the device would have it; None where it did
    host_reason: str | None = None  # why no step of the last announced generation could go straight to what is compiled
    rules: tuple[SiteReport, ...] = ()  # what each rule decides on, in the config's order
    parts: tuple[Part, ...] = ()  # how the operations are spread, in the order in which parts run
    passes: tuple[PassReport, ...] = ()  # what each pass did, with `passes=True`
    ranks: str | None = None  # which decide as one; None: this process decides for itself, or a schedule does
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
        graphs = "one full graph" if self.graphs == 1 else f"one of {self.graphs or 'several'} graphs"
        lines = (
            f"cached, in {graphs}",
            f"  trunk      {lists}",
            *self._rules(),
            *((f"  beside     {span(self.beside)}, on every step",) if self.beside else ()),
            f"  streams    {streams}",
            *((f"  rows       each of {self.streams[0].shape[0]} decides for itself",) if self.by_rows else ()),
            *((f"  ranks      {self.ranks}",) if self.ranks is not None else ()),
            f"  timestep   {self.timestep or 'not an input of this graph'}",
            f"  skippable  {self.skippable:.1%} of the floating-point operations{little}",
            *(f"  uncut      {_left(stack)}" for stack in self.uncut),
            f"  state      {self._state()}",
            f"  config     {self.config.brief() if self.config is not None else 'unknown'}",
        )
        if self.engine is not None:
            reason = f" ({self.engine_reason})" if self.engine_reason is not None else ""
            lines = (*lines, f"  engine     {self.engine}{reason}")
        if self.host_reason is not None:
            lines = (*lines, f"  host       torch.compile checks the model before every step: {self.host_reason}")
        return "\n".join((*lines, *passes))

    @property
    def by_rows(self) -> bool:
        """Whether each row of the batch decides for itself."""
        return self.config is not None and self.config.by_rows()

    @property
    def pool_bytes(self) -> int | None:
        """What `max_streams` requests that are rows of batches keep, guidance's calls apart; None: rows are none."""
        if self.config is None or not self.by_rows:
            return None
        rows = self.streams[0].shape[0]
        return self.state_bytes + (self.config.max_streams - rows) * self.row_bytes

    def _state(self) -> str:
        text = f"{self.state_bytes / 2**20:.2f} MiB a stream"
        if self.pool_bytes is not None and self.config is not None:
            text += f"; {self.pool_bytes / 2**20:.2f} MiB where rows are named, for {self.config.max_streams} of them"
        if self.config is not None and (count := self.config.device_streams) is not None:
            text += f"; of {count} on the device, of the others in host memory"
        return text

    def to_dict(self) -> dict[str, Any]:
        """All of it, by field, in what JSON can hold: `plain` says how."""
        found: dict[str, Any] = plain(self)
        return found

    def _rules(self) -> tuple[str, ...]:
        if len(self.rules) == 1:
            return f"  probe      {span(self.probe)}", f"  deep       {self.rules[0].skips}"
        told = enumerate(self.rules, start=1)
        return tuple(f"  rule {n:<5} probe {span(one.probe)}; deep {one.skips}" for n, one in told)

    def _passes(self) -> tuple[str, ...]:
        width = max((len(one.name) for one in self.passes), default=0)
        told = (f"    {one.name:<{width}} {one.seconds:8.3f} s  {one.did}" for one in self.passes)
        return ("  passes", *told) if self.passes else ()


def _left(stack: Uncut) -> str:
    if stack.again:
        advice = f"{stack.owner}, called again: call the compiled denoiser by itself, not two calls in one graph"
    else:
        advice = f"{stack.owner}: trunk={stack.owner!r} may cut it instead"
    return f"{stack.share:.1%} of the operations in {advice}"


def span(paths: tuple[str, ...]) -> str:
    """Blocks by the first and the last of them: "blocks.1 ... blocks.9 (9)"."""
    if not paths:
        return "none"
    return paths[0] if len(paths) == 1 else f"{paths[0]} ... {paths[-1]} ({len(paths)})"
