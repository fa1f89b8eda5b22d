"""What `quality` says of a rule: the values of the fields that were not given."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .rules import CheckedEstimator

if TYPE_CHECKING:
    from .site_rule import SiteRule

Quality = Literal["high", "balanced", "fast"]

THRESHOLDS: dict[str, float] = {"high": 0.03, "balanced": 0.1, "fast": 0.2}
SKIPS: dict[str, int] = {"high": 2, "balanced": 2, "fast": 3}  # in a row
_SCALES = {"estimate": 1.0, "probe": 1.0, "probe_minus_input": 0.2}  # of what is compared with the threshold
_PUBLISHED_RANGE = (1.0, 1.5)
_TRIED_RANGE = (1.0, 2.0)  # tried on the probe first, an estimate may go further

_NOT_GIVEN = {"max_consecutive_skips": "auto"}  # where None says something; of the others it is None

_Rule = TypeVar("_Rule", bound="SiteRule")


def settle(rule: _Rule) -> _Rule:
    """The rule with a value in every field that something reads and that was not given."""
    found: dict[str, Any] = {}
    decides = rule.gate is None and rule.schedule is None
    error = rule.error or ("estimate" if decides and _can_try(rule) else "probe")
    if rule.schedule is None:
        found["max_consecutive_skips"] = SKIPS[rule.quality]
    if decides:
        found |= {"error": error, "threshold": THRESHOLDS[rule.quality] * _SCALES[error]}
    if rule.estimator is None:
        tried = decides and error == "estimate"
        found["order"] = 2 if tried and not rule.feedback else 1
        found["gamma_range"] = _TRIED_RANGE if tried else _PUBLISHED_RANGE
    missing = {name: value for name, value in found.items() if getattr(rule, name) == _NOT_GIVEN.get(name)}
    return dataclasses.replace(rule, **missing) if missing else rule


def _can_try(rule: SiteRule) -> bool:
    """Whether there is a probe that the estimator can be tried on."""
    if rule.probe_depth == 0 or rule.carried == "value" or len(rule.asked_sites()) > 1:
        return False
    if rule.estimator is None:
        return True
    return isinstance(rule.estimator, CheckedEstimator) and getattr(rule.estimator, "along", None) != "input"
