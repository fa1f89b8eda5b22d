"""Checks a config as it is made: each field by itself, then those that go together."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from .estimators import DCTA
from .fields import REPLACES
from .kernels.float8 import FLOAT8
from .passes.sublayers import KINDS
from .rules import MOST_BITS, CheckedEstimator, EstimateGate, Estimator, FollowingEstimator, Gate
from .schedules import Schedule
from .write.control import MASKED_STEPS, NO_LIMIT

if TYPE_CHECKING:
    from .config import DiCacheConfig


def check(config: DiCacheConfig) -> None:
    """Raises TypeError or ValueError, naming the field: a wrong type, a value out of range, a contradiction."""
    for one in (_check_numbers, _check_choices, _check_types, _check_together):
        one(config)


def _check_numbers(config: DiCacheConfig) -> None:
    _real("threshold", config.threshold, 0, math.inf)
    _real("feedback", config.feedback, 0, 1)
    for name, least in (("probe_depth", 0), ("warmup_steps", 0), ("final_steps", 0), ("max_streams", 1)):
        whole(name, getattr(config, name), least)
    for name, least in (("max_consecutive_skips", 0), ("num_steps", 1)):
        if getattr(config, name) is not None:
            whole(name, getattr(config, name), least)
    if not isinstance(config.deep_steps, tuple):
        raise TypeError(f"deep_steps: expected a tuple of steps, got {config.deep_steps!r}")
    shares = config.deep_shares()
    for step in config.deep_steps:
        if not shares:
            whole("deep_steps", step, 0)
            continue
        _real("deep_steps", step, 0, 1)
        if step == 1:
            raise ValueError("deep_steps: expected shares of a generation from 0 to below 1, got 1")
    if list(config.deep_steps) != sorted(set(config.deep_steps)):
        raise ValueError(f"deep_steps: expected each step once and in order, got {config.deep_steps!r}")
    if config.deep_steps and config.deep_steps[-1] >= MASKED_STEPS:
        raise ValueError(f"deep_steps: expected steps below {MASKED_STEPS}, got {config.deep_steps[-1]}")
    if config.warmup_ratio is not None:
        _real("warmup_ratio", config.warmup_ratio, 0, 1)
    if not isinstance(config.gamma_range, tuple) or len(config.gamma_range) != 2:
        raise TypeError(f"gamma_range: expected two numbers (low, high), got {config.gamma_range!r}")
    low, high = config.gamma_range
    for bound in (low, high):
        _real("gamma_range", bound, 0, math.inf)
    if not low <= high:
        raise ValueError(f"gamma_range: expected low <= high, got {config.gamma_range!r}")


def _check_choices(config: DiCacheConfig) -> None:
    for name, choices in (
        ("order", (1, 2)),
        ("error", ("probe", "probe_minus_input", "estimate")),
        ("comparison", ("<", "<=")),
        ("streams", ("auto", 1)),
        ("lowering", ("inductor", "eager")),
        ("engine", ("auto", "conditional", "graphs", "calls", "cond")),
    ):
        value = getattr(config, name)
        if isinstance(value, bool) or value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_types(config: DiCacheConfig) -> None:
    for name in ("warmup_inclusive", "joint", "ranks_agree", "strict"):
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"{name}: expected True or False, got {getattr(config, name)!r}")
    if config.timestep_input is not None and not isinstance(config.timestep_input, str):
        raise TypeError(f"timestep_input: expected the name of an argument, got {config.timestep_input!r}")
    if config.sites != "trunk" and not _are_parts(config.sites) and not _are_ranges(config.sites):
        parts = ", ".join(map(repr, KINDS))
        expected = f"'trunk', two whole numbers or several such pairs, or of {parts} one or several"
        raise TypeError(f"sites: expected {expected}, got {config.sites!r}")
    owners = config.trunk_owners()
    if not isinstance(owners, tuple) or not all(isinstance(owner, str) and owner for owner in owners):
        raise TypeError(f"trunk: expected a module path or a tuple of them, got {config.trunk!r}")
    if len(set(owners)) < len(owners):
        raise ValueError(f"trunk: expected each list once, got {config.trunk!r}")
    dtypes = (None, torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8)
    if config.state_dtype not in dtypes:
        raise TypeError(f"state_dtype: expected one of {', '.join(map(str, dtypes))}, got {config.state_dtype!r}")
    if config.schedule is not None and not isinstance(config.schedule, Schedule):
        raise TypeError(f"schedule: expected a Schedule, such as Schedule.every(4), got {config.schedule!r}")
    for name, kinds in (("gate", (Gate, EstimateGate)), ("estimator", (Estimator,))):
        value = getattr(config, name)
        if value is not None and (isinstance(value, type) or not isinstance(value, kinds)):
            forms = " or ".join(f"rules.{kind.__name__}" for kind in kinds)
            raise TypeError(f"{name}: expected an object with the methods of {forms}, got {value!r}")


def _are_parts(sites: object) -> bool:
    kinds = (sites,) if isinstance(sites, str) else sites
    return isinstance(kinds, tuple) and bool(kinds) and len(set(kinds)) == len(kinds) and set(kinds) <= set(KINDS)


def _are_ranges(sites: object) -> bool:
    if not isinstance(sites, tuple) or not sites:
        return False
    pairs = sites if all(isinstance(site, tuple) for site in sites) else (sites,)
    return all(
        len(pair) == 2 and all(isinstance(place, int) and not isinstance(place, bool) for place in pair)
        for pair in pairs
    )


def _check_together(config: DiCacheConfig) -> None:
    _check_replaced(config)
    if config.warmup_inclusive and config.warmup_ratio is None:
        raise ValueError("warmup_inclusive: it says how warmup_ratio counts, and warmup_ratio is None")
    gate, estimator = config.make_gate(), config.make_estimator()
    if isinstance(gate, EstimateGate) and not isinstance(estimator, CheckedEstimator):
        asking = "error='estimate'" if config.gate is None else f"gate={gate!r}"
        raise ValueError(f"{asking} needs an estimator with the methods of rules.CheckedEstimator, got {estimator!r}")
    if isinstance(gate, EstimateGate) and config.probe_depth == 0:
        raise ValueError("probe_depth=0 leaves no probe to try the estimator on, which error='estimate' does")
    along_input = isinstance(estimator, DCTA) and estimator.along == "input"
    if isinstance(gate, EstimateGate) and along_input:
        raise ValueError(f"error='estimate' tries the estimator on the probe, and {estimator!r} goes along the input")
    if config.parts() and (config.schedule is None or estimator.probes):
        need = "They need a schedule, and an estimator that looks at no probe, such as Reuse()"
        raise ValueError(f"sites={config.sites!r}: parts of blocks have no probe. {need}")
    if isinstance(estimator, FollowingEstimator) and (config.parts() or len(config.ranges()) > 1):
        asking = "feedback" if config.estimator is None else f"estimator={estimator!r}"
        raise ValueError(f"{asking} counts on every step, which it can at one site: sites={config.sites!r} are several")
    if config.feedback and config.order == 2 and config.estimator is None:
        raise ValueError("feedback goes with the line through two anchors: order=2 needs feedback=0")
    if config.num_steps is not None and config.schedule is None:
        for name in ("warmup_steps", "final_steps"):
            if getattr(config, name) > config.num_steps:
                raise ValueError(f"{name}={getattr(config, name)} is more than num_steps={config.num_steps}")
        if config.deep_steps and not config.deep_shares() and config.deep_steps[-1] >= config.num_steps:
            raise ValueError(
                f"deep_steps: the last of num_steps={config.num_steps} is step {config.num_steps - 1}, "
                f"got {config.deep_steps[-1]}"
            )


def _check_replaced(config: DiCacheConfig) -> None:
    """Raises ValueError for a field that has another value than by default, and that nothing would read."""
    defaults = {field.name: field.default for field in fields(config)}
    for by, replaced in REPLACES.items():
        owner = getattr(config, by)
        if owner is None:
            continue
        for name in replaced:
            if getattr(config, name) != defaults[name]:
                raise ValueError(
                    f"{name}: nothing reads it, because the config has {by}={owner!r}. Leave one of them out"
                )


def _real(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(
            f"{name}: expected a number that a float can hold, or inf, got one of {value.bit_length()} bits"
        )
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low} to {high}, got {value!r}")


def whole(name: str, value: object, least: int) -> None:
    """Raises TypeError or ValueError, naming the field, if a value is no whole number or smaller than `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {_shown(value)}")
    if value > NO_LIMIT:  # the device counts in int64
        raise ValueError(f"{name}: expected at most {NO_LIMIT}, got {_shown(value)}")


def _shown(value: int) -> str:
    """A number, unless it is so long that Python would not print it."""
    return str(value) if value.bit_length() < 64 else f"a number of {value.bit_length()} bits"
