"""Numbers for people."""

from __future__ import annotations

import math

TIMES = "\N{MULTIPLICATION SIGN}"
NONE = "\N{EN DASH}"


def number(value: float | None, digits: int = 4) -> str:
    """With so many significant digits; a dash for none, "∞" for what is infinite."""
    if value is None:
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return "NaN" if math.isnan(value) else f"{value:.{digits}g}"


def percent(share: float) -> str:
    """Of a share from 0 to 1; one digit more where it is near an end."""
    near = 0 < share < 0.1 or 0.9 < share < 1
    return f"{share:.1%}" if near else f"{share:.0%}"


def milliseconds(seconds: float | None) -> str:
    """In the unit that needs the fewest digits."""
    if seconds is None:
        return NONE
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def both_times(first: float, second: float) -> str:
    """Two times in one unit."""
    unit, name = (1.0, "s") if max(first, second) >= 1 else (1000.0, "ms")
    shown = (f"{time * unit:.{3 if time * unit >= 100 else 2}g}" for time in (first, second))
    return f"{' / '.join(shown)} {name}"


def size(count: int) -> str:
    """Of bytes."""
    if count < 1024:
        return f"{count} B"
    unit = min(int(math.log(count, 1024)), 4)
    return f"{count / 1024**unit:.2f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def counted(count: int, what: str) -> str:
    """As in "1 step" and "2 steps"."""
    return f"{count} {what}{'' if count == 1 else 's'}"
