"""Rows of a batch that decide for themselves: which values have a part of each, and what a step leaves of which."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ..graph import values
from ..program import Value
from .emit import Emitter
from .record import OF_RECORD
from .row_wise import Operations
from .slots import Updates

STAYS = "stays"  # what is known of a step: for which rows a rule's sites are reused, or it is not asked
ASKED = "asked"  # and which ask it; of a rule inside of another's deep way


@dataclass(frozen=True)
class Rows:
    """The rows of a batch."""

    count: int
    mode: FakeTensorMode  # of the graph's values
    # What pieces give to others: its fake value, and whether each row has a part of it, [B, what a row sees].
    given: dict[Value, tuple[Tensor, bool]] = field(default_factory=dict)
    # What functions were found to do, by what they are and were given: many are traced again and again.
    traced: dict[Hashable, Operations] = field(default_factory=dict)

    def have(self, node: fx.Node) -> bool:
        """Whether each row has a part of a tensor."""
        recorded = values.tensor(node)
        return recorded is not None and bool(recorded.dim()) and str(recorded.shape[0]) == str(self.count)


def rows_of(node: fx.Node, count: int) -> Rows:
    """So many rows, of a graph with this value."""
    recorded = values.tensor(node)
    assert isinstance(recorded, FakeTensor)
    return Rows(count, recorded.fake_mode)


def of_asked(emitter: Emitter, updates: Updates, asked: fx.Node) -> Updates:
    """What slots become of which those rows keep theirs that have not asked."""
    return merged(emitter, asked, updates, {})


def merged(emitter: Emitter, mask: fx.Node, updates: Updates, otherwise: Updates) -> Updates:
    """What slots become: `updates` for the rows of a mask, `otherwise` for others, or what they were."""
    found = {}
    for name, new in updates.items():
        other = otherwise[name] if name in otherwise else emitter.state(name)
        found[name] = new if name in OF_RECORD else emitter.choose(mask, new, other)
    return found


# Traced into the graph:


def unless_asked(reuse: Tensor, asked: Tensor) -> Tensor:
    return reuse | ~asked
