"""The parts of a page about the state in memory and the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..config import DiCacheConfig
from ..site_rule import SiteRule
from .amounts import TIMES, counted, size
from .data import Kept, Memory
from .markup import Markup, folded, table, tag

_LARGE = 0.01  # of a stream's state: what is smaller is folded


def memory(kept: Memory, state_bytes: int) -> list[Markup]:
    """What streams keep; `state_bytes` is what one would."""
    if not kept.streams:
        return [tag("p", f"No stream has state now. One keeps {size(state_bytes)}.")]
    count, whole = len(kept.streams), sum(slot.bytes for slot in kept.slots)
    large = [slot for slot in kept.slots if slot.bytes >= _LARGE * whole]
    small = [slot for slot in kept.slots if slot.bytes < _LARGE * whole]
    rows = _rows(large)
    if small:
        rows.append((counted(len(small), "small slot"), size(sum(slot.bytes for slot in small)), "", "", ""))
    heads = ("slot", "memory", "shape", "type", "what it is")
    have = f"{counted(count, 'stream')} {'has' if count == 1 else 'have'} state: {size(kept.bytes)}"
    found = [
        tag("p", have + (" in all." if count > 1 else "."), " What an engine captured is not counted."),
        table(f"Slots of stream {kept.streams[-1][0]}", heads, rows, numbers=(1,)),
    ]
    if small:
        found.append(
            folded("The small slots", table("Slots below a hundredth of it", heads, _rows(small), numbers=(1,)))
        )
    if count > 1:
        streams = [(name, size(own)) for name, own in kept.streams]
        found.append(folded("All streams", table("Streams that have state", ("stream", "size"), streams, numbers=(1,))))
    return found


def settings(config: DiCacheConfig) -> list[Markup]:
    """The fields that are not as by default, and, folded, the others."""
    rows = [(f.name, _code(value := getattr(config, f.name)), _code(f.default), value == f.default) for f in _fields()]
    changed = [row[:3] for row in rows if not row[3]]
    found = [tag("p", "All fields are as by default.")]
    if changed:
        found = [table("Fields that are not as by default", ("field", "value", "default"), changed)]
    settled = config.settled()
    values = ((field.name, getattr(settled, field.name)) for field in _fields())
    given = [(name, _code(value)) for name, value in values if value != getattr(config, name)]
    if given:
        found.append(table("Fields that quality gives", ("field", "value"), given))
    for number, rule in enumerate(config.rules, start=1):
        found.append(tag("p", f"Rule {number}: ", tag("code", rule.settled().brief())))
    same = table("Fields that are as by default", ("field", "value"), [row[:2] for row in rows if row[3]])
    return [*found, folded("The other fields", same)]


def _fields() -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(DiCacheConfig)


def _rows(slots: Sequence[Kept]) -> list[tuple[str, ...]]:
    # Spaces at which no line breaks.
    shapes = (f"\N{NO-BREAK SPACE}{TIMES}\N{NO-BREAK SPACE}".join(map(str, slot.shape)) for slot in slots)
    return [
        (s.name, size(s.bytes), shape or "one number", s.dtype, s.what) for s, shape in zip(slots, shapes, strict=True)
    ]


def _code(value: object) -> Markup:
    if isinstance(value, tuple) and value and all(isinstance(one, SiteRule) for one in value):
        return tag("span", f"{counted(len(value), 'rule')}, below")
    return tag("code", repr(value))
