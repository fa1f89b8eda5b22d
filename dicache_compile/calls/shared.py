"""Tensors that several streams have together."""

from __future__ import annotations

import weakref

from torch import Tensor

from ..program import Slot
from .layout import Form
from .slot_values import allocate


class Shared:
    """Tensors that streams have together, by form, as those of one request do; each lasts as long as a stream has it.

    They stay where they are: what is captured for one stream writes what another one's captured step reads.
    """

    def __init__(self) -> None:
        self._tensors: weakref.WeakValueDictionary[Form, Tensor] = weakref.WeakValueDictionary()

    def knows(self, form: Form) -> bool:
        return form in self._tensors

    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def tensor(self, form: Form, slot: Slot, shape: tuple[int, ...]) -> Tensor:
        """That of a form; a new one if no stream has it."""
        found = self._tensors.get(form)
        if found is None:
            found = self._tensors[form] = allocate(slot, shape)
        return found
