"""The picture of a trade-off, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH, HEIGHT, EDGE = 640, 400, 56


def trade_off(points: Sequence[tuple[float, float, int]], chosen: int) -> str:
    """Points of (speed-up, PSNR in dB, deep steps), joined by a line; the chosen number of deep steps is filled."""
    ordered = sorted(points)
    fast = [speed for speed, _, _ in ordered]
    good = [quality for _, quality, _ in ordered]
    low, high = math.floor(min(good) / 5) * 5, math.ceil(max(good) / 5 + 1e-9) * 5
    most = max(math.ceil(max(fast)), 2)

    def place(speed: float, quality: float) -> tuple[float, float]:
        x = EDGE + (speed - 1) / (most - 1) * (WIDTH - 2 * EDGE)
        y = HEIGHT - EDGE - (quality - low) / (high - low) * (HEIGHT - 2 * EDGE)
        return round(x, 1), round(y, 1)

    parts = []
    for level in range(low, high + 1, 5):
        x, y = place(1, level)
        parts.append(f'<path d="M{x} {y}H{WIDTH - EDGE}" class="grid"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4}" class="left">{level}</text>')
    for times in range(1, most + 1):
        x, y = place(times, low)
        parts.append(f'<text x="{x}" y="{y + 20}" class="below">{times}x</text>')
    line = " ".join(f"{x},{y}" for x, y in (place(speed, quality) for speed, quality, _ in ordered))
    parts.append(f'<polyline points="{line}" class="line"/>')
    for speed, quality, deep in ordered:
        x, y = place(speed, quality)
        told = f"<title>{deep} deep steps: {speed:.2f}x, {quality:.1f} dB</title>"
        kind = "chosen" if deep == chosen else "point"
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" class="{kind}">{told}</circle>')
        parts.append(f'<text x="{x + 8}" y="{y - 8}" class="name">{deep}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        "<title>PSNR over speed-up, by the number of deep steps</title>"
        "<style>text{font:13px sans-serif;fill:#444}.left{text-anchor:end}.below{text-anchor:middle}.grid{stroke:#ddd}"
        ".line{fill:none;stroke:#2a6f97;stroke-width:2}.point{fill:#fff;stroke:#2a6f97;stroke-width:2}"
        ".chosen{fill:#c1440e;stroke:#c1440e;stroke-width:2}svg{background:#fff}</style>"
        f'{"".join(parts)}<text x="{WIDTH / 2}" y="{HEIGHT - 10}" class="below">speed-up</text>'
        f'<text x="16" y="{EDGE - 20}">PSNR, dB</text></svg>\n'
    )
