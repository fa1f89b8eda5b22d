"""State that lies in host memory while other streams run.

The large tensors of a stream, its anchors above all, have their home in host memory. To run a step they are copied to a
*desk*: tensors on the device that several streams use in turn. They stay there until another stream of that desk comes;
then they go home first. With several desks the stream that is likely to come next is brought while a step runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..program import Slot
from ..write.control import TIMES
from .layout import Form
from .shared import Shared
from .slot_values import allocate


def is_large(slot: Slot) -> bool:
    """Whether a slot has a home in host memory: it is of a carried value's size, and of one stream alone."""
    return slot.like is not None and not slot.of_rows and not slot.of_request and slot.name != TIMES


def home(slot: Slot, shape: tuple[int, ...]) -> Tensor:
    """A slot's tensor in host memory, which a CUDA device copies without the host's help."""
    return allocate(slot, shape, on_host=True)


class Guest(Protocol):
    """A stream's state, as a desk knows it."""

    def on_desk(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(where it is on the desk, its home) for each large tensor."""
        ...


class Desk:
    """Tensors on the device that several streams use in turn."""

    def __init__(self) -> None:
        self._tensors = Shared()
        self.guests: weakref.WeakSet[Guest] = weakref.WeakSet()  # who comes here
        self._present: weakref.ref[Guest] | None = None
        self._copies: _Copies | None = None

    def tensor(self, form: Form, slot: Slot, shape: tuple[int, ...]) -> Tensor:
        """That of a form, which lasts as long as a guest that has it."""
        return self._tensors.tensor(form, slot, shape)

    def has(self, guest: Guest) -> bool:
        return self._present is not None and self._present() is guest

    def knows(self, form: Form) -> bool:
        """Whether a guest that is known has that one."""
        return self._tensors.knows(form)

    def bytes(self) -> int:
        """What lies here on the device."""
        return self._tensors.bytes()

    def bring(self, guest: Guest, ahead: bool = False) -> None:
        """Sends home who is here, and copies the guest's tensors, on CUDA without the host's help.

        `ahead`: while a step of another desk runs, which these copies do not wait for.
        """
        if self.has(guest):
            return
        before = self._present() if self._present is not None else None
        pairs = list(guest.on_desk())
        if self._copies is None:
            self._copies = _Copies(next((here.device for here, _ in pairs), torch.device("cpu")))
        with self._copies.turn(ahead):
            if before is not None:
                for here, at_home in before.on_desk():
                    self._copies.copy(at_home, here)
            self._present = None  # until all is here: what breaks off now leaves both at home
            for here, at_home in pairs:
                self._copies.copy(here, at_home)
        self._present = weakref.ref(guest)

    def begin(self) -> None:
        """A step of who is here comes next: it waits for the copies."""
        if self._copies is not None:
            self._copies.arrive()

    def done(self) -> None:
        """The step is launched: later copies wait for it."""
        if self._copies is not None:
            self._copies.leave()


class Desks:
    """Those of one model. Not safe for calls from several threads at once."""

    def __init__(self, count: int) -> None:
        self._desks = tuple(Desk() for _ in range(count))
        self._next: weakref.WeakKeyDictionary[Guest, weakref.ref[Guest]] = weakref.WeakKeyDictionary()
        self._last: weakref.ref[Guest] | None = None

    def assign(self) -> Desk:
        """The desk of a new stream, where it always comes: what is captured for it has the addresses of that one."""
        return min(self._desks, key=lambda desk: len(desk.guests))

    @contextmanager
    def step(self, guest: Guest) -> Iterator[None]:
        """Inside, a step of the guest may run. After it who came next last time is brought to another desk."""
        desk = self._of(guest)
        if desk is None:
            yield
            return
        desk.bring(guest)
        desk.begin()
        try:
            yield
        finally:
            desk.done()
        last = self._last() if self._last is not None else None
        if last is not None:
            self._next[last] = weakref.ref(guest)
        self._last = weakref.ref(guest)
        following = self._next.get(guest, lambda: None)()
        other = self._of(following) if following is not None else None
        if following is not None and other is not None and other is not desk:
            other.bring(following, ahead=True)

    def bytes(self) -> int:
        """What lies on the device."""
        return sum(desk.bytes() for desk in self._desks)

    def _of(self, guest: Guest) -> Desk | None:
        return next((desk for desk in self._desks if guest in desk.guests), None)


class _Copies:
    """The copies to and from one desk, in order; on CUDA on a stream of their own, beside the steps of other desks."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._device = device
        self._left: torch.cuda.Event | None = None  # the last step here
        self._arrived: torch.cuda.Event | None = None  # the last copies

    @contextmanager
    def turn(self, ahead: bool) -> Iterator[None]:
        with torch.inference_mode(False), torch.no_grad():
            if self._stream is None:
                yield
                return
            if self._left is not None:  # on whichever stream that was
                self._stream.wait_event(self._left)
            if not ahead:  # new tensors are still being filled there
                self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                yield
                self._arrived = self._stream.record_event()

    def copy(self, to: Tensor, of: Tensor) -> None:
        to.copy_(of, non_blocking=True)
        if self._stream is not None:
            # The allocator may give memory to others only once this stream is done with it, too.
            (to if to.is_cuda else of).record_stream(self._stream)

    def arrive(self) -> None:
        if self._arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrived)

    def leave(self) -> None:
        if self._stream is not None:
            self._left = torch.cuda.current_stream(self._device).record_event()
