"""Of what parts a deep value was joined on its way: text and image in one sequence."""

from __future__ import annotations

import itertools

import torch
from torch import fx

from ..graph import operators, values
from ..graph.layout import Window, concatenated_dim, is_counted, points_back
from ..graph.residual_path import Path, Step, Trail, residual_walk
from ..plan import Region


def parts_of(y: fx.Node, regions: dict[fx.Node, Region]) -> tuple[Window, ...]:
    """The parts that a deep value was joined of on its way; none where it was not."""

    def joined_along(trail: Path) -> int | None:
        """Along which dimension of y the parts of the join at the end of the path lie one after the other."""
        points = points_back(trail, None)
        if points is None:
            return None
        start, end, _ = points
        dim = concatenated_dim(trail[-1]) % end.shape[1]
        if sorted(values.size_text(trail[-1]) or ()) != sorted(values.size_text(y) or ()):
            return None
        return next((d for d in range(start.shape[1]) if torch.equal(start[:, d], end[:, dim])), None)

    def joins(step: Step, trail: Trail) -> bool:
        node = step[0]
        if not operators.joins(node) or regions.get(node) is not Region.DEEP:
            return False
        return not is_counted(trail()) and joined_along(trail()) is not None

    found = residual_walk((y, None), joins)
    if found is None:
        return ()
    join, along = found[0][0], joined_along(found[1])
    assert along is not None
    dim = concatenated_dim(join) % len(values.size_text(join) or ())
    lengths = [recorded.shape[dim] for n in join.all_input_nodes if (recorded := values.tensor(n)) is not None]
    if any(not isinstance(length, int) for length in lengths):
        return ()
    starts = itertools.accumulate(lengths, initial=0)
    return tuple(Window(along, start, length) for start, length in zip(starts, lengths, strict=False))
