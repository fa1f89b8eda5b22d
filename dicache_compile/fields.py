"""Which fields of the config belong together."""

from __future__ import annotations

# The fields that no compiled graph depends on; `configure` changes them.
RUN_TIME = (
    "quality",
    "threshold",
    "gamma_range",
    "warmup_steps",
    "warmup_ratio",
    "warmup_inclusive",
    "final_steps",
    "deep_steps",
    "schedule",
    "max_consecutive_skips",
    "num_steps",
    "rules",
)


# The fields that nothing reads where the config has one of these.
REPLACES = {
    "gate": ("threshold", "error", "comparison"),
    "estimator": ("gamma_range", "order", "feedback"),
    "schedule": (
        "quality",
        "threshold",
        "error",
        "comparison",
        "gate",
        "warmup_steps",
        "warmup_ratio",
        "warmup_inclusive",
        "final_steps",
        "deep_steps",
        "max_consecutive_skips",
    ),
}
