"""Which model a weight is of, by a mark on the weight itself.

Not by a weak reference to the weight: PyTorch does not exchange the contents of tensors that have one, which is how
quantised weights are moved. Not by its id alone either, which a later tensor may have.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor

_NAME = "_dicache_mark"


class Mark:
    """Kept alive by its weight alone, so that weak references to it end with the weight.

    A copy of the weight has none, or one that is not its own. A weight that was saved whole is loaded, by
    `weights_only` too, with an empty dict in the place of its mark.
    """

    __slots__ = ("__weakref__", "owner")

    def __init__(self, weight: Tensor) -> None:
        self.owner = id(weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return OrderedDict, ()


def mark_of(weight: Tensor) -> Mark:
    """The mark of a weight; a new one where it has none."""
    found = _own(weight)
    if found is None:
        found = vars(weight)[_NAME] = Mark(weight)
    return found


def marks_of(weights: Iterable[Tensor]) -> set[Mark]:
    """The marks that some of these weights have."""
    return {mark for weight in weights if (mark := _own(weight)) is not None}


def _own(weight: Tensor) -> Mark | None:
    found = vars(weight).get(_NAME)
    return found if isinstance(found, Mark) and found.owner == id(weight) else None
