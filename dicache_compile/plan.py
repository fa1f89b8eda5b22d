"""What a graph is: its blocks, where it is cut, and what the cut carries. Read this file first, then `program.py`.

    Dynamo graph -> find the trunk -> partition -> write the program -> lower -> run
                    Trunk             Partition    Program

Every value is frozen: a pass reads one and returns the next.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import fx

PAIR = " + "  # between the owners of a block that is a pair of entries, as of a list for space and one for time


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block: the graph nodes that an entry of a ModuleList owns, or two entries that take turns."""

    owner: str  # "single_transformer_blocks"; "spatial_blocks + temporal_blocks"; "repeated0" where nothing has a name
    index: int  # position inside `owner`
    nodes: tuple[fx.Node, ...]  # in graph order
    key: str = ""  # its name in `owner`, where that is no number

    @property
    def path(self) -> str:
        return f"{self.owner}.{self.key or self.index}"


@dataclass(frozen=True, slots=True)
class Trunk:
    """The chain of transformer blocks, in the order in which they run."""

    blocks: tuple[Block, ...]

    @property
    def owners(self) -> tuple[str, ...]:
        """The ModuleLists, in order: ("transformer_blocks", "single_transformer_blocks")."""
        return tuple(dict.fromkeys(owner for block in self.blocks for owner in block.owner.split(PAIR)))


class Region(enum.Enum):
    """Where a node runs. A region reads its own values and those of the regions above it, never of one below, but where
    deep region and epilogue take turns (`Partition.in_turns`).
    """

    PROLOGUE = 0  # before the trunk, and whatever the probe needs that does not depend on the trunk
    PROBE = 1  # the first blocks, but for what only the other blocks read
    DEEP = 2  # the other blocks, and whatever only they need
    EPILOGUE = 3  # after the trunk, and whatever only the epilogue needs


@dataclass(frozen=True, slots=True)
class ByToken:
    """How a site computes each of its tokens, [..., T, C], from that token alone."""

    entry: fx.Node  # what its first linear takes, of y's shape
    before: tuple[fx.Node, ...]  # of the site, what needs all tokens or none; in graph order
    after: tuple[fx.Node, ...]  # of the site, what can run on some tokens, up to y; in graph order
    taken: tuple[fx.Node, ...]  # what that reads of which each token has its own part, [..., T, C]: the entry first
    share: float  # of the tokens, on which a reused step runs it


@dataclass(frozen=True, slots=True)
class Carried:
    """One value that leaves a site, and what it was before; all three have the same shape, [B, T, C] in most models."""

    x: fx.Node  # where it enters the site
    h: fx.Node  # where it leaves the probe
    y: fx.Node  # where it leaves the site
    # "residual": y - x is estimated. "value": y itself, as of a branch that is added later; x and h are then y.
    form: Literal["residual", "value"] = "residual"
    by_token: ByToken | None = None  # where that was asked for, and tokens do not look at each other


@dataclass(frozen=True, slots=True)
class Partition:
    """A graph with each node's region and the values that a reused step must stand in for."""

    graph_module: fx.GraphModule
    trunk: Trunk  # those of its blocks that the sites are made of: the probe and the deep region
    probe_depth: int  # blocks
    regions: Mapping[fx.Node, Region]  # every node but placeholders and the output
    carried: tuple[Carried, ...]  # the denoised one first
    crossing: tuple[fx.Node, ...]  # computed in prologue or probe, read in deep or epilogue; in graph order
    autocast: Mapping[fx.Node, tuple[fx.Node, ...]]  # the `_enter_autocast` nodes around a node, outermost first
    whole: Trunk | None = None  # with the blocks outside of the sites, which run on every step; None: there are none
    parts: str = ""  # which parts of the blocks the sites are, "attention" say; "": whole blocks
    # Whether deep region and epilogue take turns: what runs between two sites is in the epilogue.
    in_turns: bool = False
    rule: int = 0  # which one decides

    @property
    def all_blocks(self) -> tuple[Block, ...]:
        return (self.whole or self.trunk).blocks

    def nodes(self, *regions: Region) -> tuple[fx.Node, ...]:
        """The nodes of these regions, in graph order."""
        return tuple(n for n in self.graph_module.graph.nodes if self.regions.get(n) in regions)


@dataclass(frozen=True, slots=True)
class AskedSite:
    """Which blocks, or which parts of them, a user says may be left out."""

    blocks: tuple[int, int] | None = None  # of the trunk, as in a slice; None: all
    part: str = ""  # "attention", say, of each of them; "": whole blocks

    def __str__(self) -> str:
        return repr(self.blocks if not self.part else self.part if self.blocks is None else (self.part, *self.blocks))


@dataclass(frozen=True, slots=True)
class AskedRule:
    """What one rule decides on."""

    probe_depth: int = 1  # blocks
    sites: tuple[AskedSite, ...] = (AskedSite(),)
    form: Literal["residual", "value"] = "residual"  # `Carried.form` of whole blocks
    measures: bool = True  # whether something is looked at before the decision
    modulated: bool = False  # whether that is what the first block gives to its first linear; then it is h
    share: float | None = None  # of their tokens, on which a reused step runs sites; None: it leaves them out
    gated: bool = True  # whether a gate decides, and not a schedule


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks of a process group that decide as one."""

    name: str  # of the group, as PyTorch's functional collectives take it
    size: int  # ranks
    # What each rank has of a picture. "parts": some of its tokens. "copies": all of it. "branches": another call of the
    # same step, as one of guidance.
    hold: Literal["parts", "copies", "branches"] = "parts"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user says of a graph."""

    trunk: tuple[str, ...] = ()  # the containers of its blocks; none: they are to be found
    rules: tuple[AskedRule, ...] = (AskedRule(),)
    timestep_input: str | None = None  # the name of the timestep; None: it is to be found
    agree: Group | Literal["auto"] | None = None  # which ranks decide as one; "auto": whose blocks run together
    ranks_agree: bool = False  # whether all ranks decide alike without that
    knows_time: bool = False  # whether there is a timestep besides the graph's inputs: an earlier graph's, or a count
    told: bool = False  # whether an earlier graph of the same call tells the timestep


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the placeholders of a graph are."""

    timestep: fx.Node | None  # None: it is told from outside of the graph, by the slot "clock"
    conditions: tuple[fx.Node, ...]  # what else the caller passes and the probe's part reads, but for the latents
    weights: tuple[fx.Node, ...]  # parameters, buffers and other tensors of modules
    latents: fx.Node | None = None  # what is denoised, and so changes on every step; None: it cannot be told


@dataclass(frozen=True)
class Plan:
    """A graph and what the passes have found in it so far."""

    graph_module: fx.GraphModule
    asked: Asked = Asked()
    found: tuple[
        Partition, ...
    ] = ()  # where it is cut, in the order in which it runs; one inside of another comes later
    told: Inputs | None = None  # what its placeholders are
    ranks: Group | None = None  # which decide as one

    @property
    def partition(self) -> Partition:
        """The first one."""
        return self.found[0]

    @property
    def beside(self) -> tuple[Block, ...]:
        """The blocks outside of all sites."""
        inside = {block for partition in self.found for block in partition.trunk.blocks}
        return tuple(block for block in self.partition.all_blocks if block not in inside)

    @property
    def deep(self) -> set[fx.Node]:
        """What a step may leave out."""
        return {node for partition in self.found for node in partition.nodes(Region.DEEP)}

    @property
    def inputs(self) -> Inputs:
        assert self.told is not None
        return self.told
