"""Tensors that several streams have together."""

from __future__ import annotations

import weakref

from torch import Tensor

from ..program import Slot
from .layout import Form
from .slot_values import allocate


class Shared:
    """The tensors that the streams of one request have together, by form; each lasts as long as a stream that has it.

    They stay where they are: what is captured for one stream writes what another one's captured step reads.
    """

    def __init__(self) -> None:
        self._tensors: weakref.WeakValueDictionary[Form, Tensor] = weakref.WeakValueDictionary()

    def tensor(self, form: Form, slot: Slot, shape: tuple[int, ...]) -> Tensor:
        """That of a form; a new one if no stream has it."""
        found = self._tensors.get(form)
        if found is None:
            found = self._tensors[form] = allocate(slot, shape)
        return found
