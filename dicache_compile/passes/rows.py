"""Tells the rows of a batch: how many there are, and that each has a part of whatever is kept for it.

Requires: partitions, and what the placeholders are. Ensures: the first dimension of all that is carried is the batch,
as far as sizes tell. Not handled: a batch that is another dimension; a model whose rows look at each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ..errors import RowsError
from ..graph import values
from ..plan import Inputs, Partition

MOST = 1024  # rows: as many as the record has places


def count_rows(cuts: Sequence[Partition], inputs: Inputs) -> int:
    """How many rows a graph is for: a number, for which it is compiled. Raises RowsError where that is not known."""
    first = values.tensor(cuts[0].carried[0].x)
    assert first is not None
    if not first.dim() or values.is_data_dependent(str(first.shape[0])):
        raise RowsError(f"what the blocks carry has no first dimension that is known: {_shape(cuts[0].carried[0].x)}")
    # Before anything is compared: a symbol becomes this number, wherever it stands.
    count = int(first.shape[0])
    if count > MOST:
        raise RowsError(f"{count} rows are more than {MOST}, for which the record of a step has places")
    for carried in (one for cut in cuts for one in cut.carried):
        if (node := _other(count, (carried.x, carried.h, carried.y))) is not None:
            raise RowsError(f"the blocks carry {_shape(cuts[0].carried[0].x)} and {_shape(node)}, of other rows")
    whose, told = "latents", inputs.latents
    if told is None:
        whose, told = "result", next(iter(_outputs(cuts[0])), None)
    if told is None or _other(count, (told,)) is not None:
        found = f"the {whose} have {_shape(told)}" if told is not None else "nothing else tells how many rows there are"
        raise RowsError(
            "the batch is not the first dimension of what the blocks carry, or frames or guidance are folded into it: "
            f"that has {_shape(cuts[0].carried[0].x)}, and {found}"
        )
    time = inputs.timestep
    if time is not None and _size(time) not in ((), ("1",)) and _other(count, (time,)) is not None:
        raise RowsError(f"the timestep has {_shape(time)}: neither one for all of {count} rows nor one for each")
    return count


def _other(count: int, nodes: Sequence[fx.Node]) -> fx.Node | None:
    """The first value that has not so many rows."""
    return next((node for node in nodes if _size(node)[:1] != (str(count),)), None)


def _outputs(cut: Partition) -> list[fx.Node]:
    (output,) = cut.graph_module.graph.find_nodes(op="output")
    return [node for node in output.all_input_nodes if _size(node)]


def _size(node: fx.Node) -> tuple[str, ...]:
    return values.size_text(node) or ()


def _shape(node: fx.Node) -> str:
    return f"[{', '.join(_size(node))}]"
