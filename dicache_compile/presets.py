"""The rules of the three published scripts, as fields of the config."""

from __future__ import annotations

from typing import Any

_PUBLISHED = {"error": "probe", "order": 1, "gamma_range": (1.0, 1.5), "joint": False, "warmup_steps": 0}
PRESETS: dict[str, dict[str, Any]] = {
    "flux": {
        **_PUBLISHED,
        "threshold": 0.4,
        "warmup_ratio": 0.2,
        "warmup_inclusive": True,
        "final_steps": 1,
        "max_consecutive_skips": None,
    },
    "hunyuan": {
        **_PUBLISHED,
        "threshold": 0.1,
        "comparison": "<=",
        "warmup_ratio": 0.2,
        "max_consecutive_skips": None,
    },
    "wan": {
        **_PUBLISHED,
        "threshold": 0.08,
        "gamma_range": (1.0, 2.0),
        "warmup_ratio": 0.2,
        "max_consecutive_skips": None,
    },
}
