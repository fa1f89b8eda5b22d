"""The rules of DiCache's three published scripts (arXiv 2508.17356; github.com/Bujiazi/DiCache, commit dd7f0de)."""

from __future__ import annotations

from .method import Fields, method

_PAPER = "DiCache, arXiv 2508.17356"
_PUBLISHED: Fields = {"error": "probe", "order": 1, "gamma_range": (1.0, 1.5), "joint": False, "warmup_steps": 0}


@method("flux", _PAPER)
def flux() -> Fields:
    """The rule of the FLUX script: probe of one block, its change added up, the line through two anchors."""
    return {
        **_PUBLISHED,
        "threshold": 0.4,
        "warmup_ratio": 0.2,
        "warmup_inclusive": True,
        "final_steps": 1,
        "max_consecutive_skips": None,
    }


@method("hunyuan", _PAPER)
def hunyuan() -> Fields:
    """The rule of the HunyuanVideo script."""
    return {
        **_PUBLISHED,
        "threshold": 0.1,
        "comparison": "<=",
        "warmup_ratio": 0.2,
        "max_consecutive_skips": None,
    }


@method("wan", _PAPER)
def wan() -> Fields:
    """The rule of the WAN script."""
    return {
        **_PUBLISHED,
        "threshold": 0.08,
        "gamma_range": (1.0, 2.0),
        "warmup_ratio": 0.2,
        "max_consecutive_skips": None,
    }
