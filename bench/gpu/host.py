"""Where the host's time in a step of ours goes: what comes before the step, the checks, the launch and the copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dicache_compile.calls.session import sessions_of

from .cases import Run
from .device import Device
from .measure import by_kind, generate
from .systems import System

Times = dict[str, list[float]]


def host_parts(system: System, run: Run, device: Device) -> dict[str, dict[str, float]]:
    """Medians in microseconds for each kind of step, of a captured engine's parts; nothing where it captured nothing.

    Looks into the engine's own objects, and so is bound to how they are written.
    """
    session = sessions_of(system.model)[-1]
    recordings = [state.recording for state in session.streams.values() if state.recording is not None]
    if len(recordings) != 1:
        return {}
    times: Times = {}
    watched = (session.last_engine, "step"), (recordings[0], "fits"), (recordings[0], "run"), (recordings[0], "launch")
    with _watching(watched, times):
        found = generate(system, run, device, idle=True)
    if any(len(own) != len(found.host) for own in times.values()):
        return {}  # captured anew on the way
    step, fits, whole, launch = (times[name] for _, name in watched)
    parts = {
        "before the step": [call - inner for call, inner in zip(found.host, step, strict=True)],
        "addresses": fits,
        "launch": launch,
        "copies": [run - inner for run, inner in zip(whole, launch, strict=True)],
    }
    return {name: by_kind(values, system) for name, values in parts.items()}


@contextmanager
def _watching(watched: Any, times: Times) -> Iterator[None]:
    for owner, name in watched:
        setattr(owner, name, _timed(getattr(owner, name), times.setdefault(name, [])))
    try:
        yield
    finally:
        for owner, name in watched:
            if name == "launch":  # an attribute of its own
                owner.launch = owner.launch.__wrapped__
            else:  # a method, which the attribute hid
                delattr(owner, name)


def _timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        times.append(1e6 * (time.perf_counter() - start))
        return result

    timed.__wrapped__ = function  # type: ignore[attr-defined]
    return timed
