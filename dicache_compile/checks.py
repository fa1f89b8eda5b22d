"""Checks a config as it is made: each field by itself, then those that go together."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from .asked_sites import asked_sites
from .estimators import DCTA, LearnedTable, MeanVelocity
from .fields import REPLACES
from .kernels.float8 import FLOAT8
from .passes.whole_model import MODEL
from .qualities import THRESHOLDS
from .ranks import check_agree
from .rules import MOST_BITS, CheckedEstimator, EstimateGate, Estimator, FollowingEstimator, Gate, TokenEstimator
from .schedules import Schedule
from .write.control import MASKED_STEPS, NO_LIMIT

ENGINES = ("auto", "conditional", "graphs", "calls", "cond")
if TYPE_CHECKING:
    from .config import DiCacheConfig
    from .site_rule import SiteRule


def check_rule(rule: SiteRule) -> None:
    """Raises TypeError or ValueError, naming the field: a wrong type, a value out of range, a contradiction."""
    for one in (_check_numbers, _check_types, _check_replaced):
        one(rule)
    if not getattr(rule, "rules", ()):  # which decide in its place
        _check_together(rule.settled())


def check(config: DiCacheConfig) -> None:
    """The same of what a config has besides; `check_rule` is for the rest."""
    whole("max_streams", config.max_streams, 1)
    for name in ("max_state_bytes", "device_streams"):
        if (number := getattr(config, name)) is not None:
            whole(name, number, 1)
    if config.num_steps is not None:
        whole("num_steps", config.num_steps, 1)
    _check_choices(
        config,
        streams=("auto", 1),
        rows=("together", "independent"),
        lowering=("inductor", "eager"),
        engine=ENGINES,
        blocks=("auto", "once", "whole"),
    )
    _check_flags(config, "ranks_agree", "strict")
    check_agree(config.agree)
    if config.ranks_agree and config.agree not in ("auto", None):
        raise ValueError("agree: nothing reads it, because the config has ranks_agree=True. Leave one of them out")
    if config.schedule is not None and config.agree not in ("auto", None):
        raise ValueError(f"agree: a schedule is the same on all ranks, and the config has schedule={config.schedule}")
    if config.joint is not None:
        _check_flags(config, "joint")
    if config.timestep_input is not None and not isinstance(config.timestep_input, str):
        raise TypeError(f"timestep_input: expected the name of an argument, got {config.timestep_input!r}")
    owners = config.trunk_owners()
    if not isinstance(owners, tuple) or not all(isinstance(owner, str) and owner for owner in owners):
        raise TypeError(f"trunk: expected a module path or a tuple of them, got {config.trunk!r}")
    if len(set(owners)) < len(owners):
        raise ValueError(f"trunk: expected each list once, got {config.trunk!r}")
    dtypes = (None, torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8)
    if config.state_dtype not in dtypes:
        raise TypeError(f"state_dtype: expected one of {', '.join(map(str, dtypes))}, got {config.state_dtype!r}")
    if config.schedule is not None and config.joint:
        raise ValueError(f"joint: nothing reads it, because the config has schedule={config.schedule}")
    _check_rules(config)
    if config.streams == 1 and any(rule.is_guided() for rule in config.all_rules()):
        raise ValueError("streams: with 1 all calls are of one stream, and a rule estimates one call from another")
    for rule in config.all_rules():
        _check_length(rule, config.num_steps)


def _check_rules(config: DiCacheConfig) -> None:
    rules: Any = config.rules
    for rule in rules if isinstance(rules, tuple) else (None,):
        if isinstance(rule, type(config)) or not hasattr(rule, "same_graph"):
            raise TypeError(f"rules: expected a tuple of SiteRule, got {rules if rule is None else rule!r}")
    if config.rules:
        for one in fields(type(config.rules[0])):
            if getattr(config, one.name) != one.default:
                raise ValueError(f"{one.name}: nothing reads it, because the config has rules. Set it in each of them")


def _check_length(rule: SiteRule, num_steps: int | None) -> None:
    """Raises ValueError where a rule names steps that a generation of this many does not have."""
    if num_steps is None:
        return
    for name in ("warmup_steps", "final_steps"):
        if rule.schedule is None and getattr(rule, name) > num_steps:
            raise ValueError(f"{name}={getattr(rule, name)} is more than num_steps={num_steps}")
    steps = rule.deep_steps if rule.schedule is None else rule.schedule.listed
    if steps and isinstance(steps[-1], int) and not rule.deep_shares() and steps[-1] >= num_steps:
        name = "deep_steps" if rule.schedule is None else "schedule"
        raise ValueError(f"{name}: the last of num_steps={num_steps} is step {num_steps - 1}, got {steps[-1]}")


def _check_numbers(rule: SiteRule) -> None:
    if rule.threshold is not None:
        _real("threshold", rule.threshold, 0, math.inf)
    _real("feedback", rule.feedback, 0, 1)
    for name in ("probe_depth", "warmup_steps", "final_steps"):
        whole(name, getattr(rule, name), 0)
    if rule.max_consecutive_skips not in (None, "auto"):
        whole("max_consecutive_skips", rule.max_consecutive_skips, 0)
    if not isinstance(rule.deep_steps, tuple):
        raise TypeError(f"deep_steps: expected a tuple of steps, got {rule.deep_steps!r}")
    shares = rule.deep_shares()
    for step in rule.deep_steps:
        if not shares:
            whole("deep_steps", step, 0)
            continue
        _real("deep_steps", step, 0, 1)
        if step == 1:
            raise ValueError("deep_steps: expected shares of a generation from 0 to below 1, got 1")
    if list(rule.deep_steps) != sorted(set(rule.deep_steps)):
        raise ValueError(f"deep_steps: expected each step once and in order, got {rule.deep_steps!r}")
    if rule.deep_steps and rule.deep_steps[-1] >= MASKED_STEPS:
        raise ValueError(f"deep_steps: expected steps below {MASKED_STEPS}, got {rule.deep_steps[-1]}")
    if rule.warmup_ratio is not None:
        _real("warmup_ratio", rule.warmup_ratio, 0, 1)
    if rule.gamma_range is not None:
        _check_range(rule.gamma_range)


def _check_range(gamma_range: object) -> None:
    if not isinstance(gamma_range, tuple) or len(gamma_range) != 2:
        raise TypeError(f"gamma_range: expected two numbers (low, high), got {gamma_range!r}")
    low, high = gamma_range
    for bound in (low, high):
        _real("gamma_range", bound, 0, math.inf)
    if not low <= high:
        raise ValueError(f"gamma_range: expected low <= high, got {gamma_range!r}")


def _check_choices(of: SiteRule, **choices: tuple[object, ...]) -> None:
    for name, expected in choices.items():
        value = getattr(of, name)
        if isinstance(value, bool) or value not in expected:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, expected))}, got {value!r}")


def _check_flags(of: SiteRule, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(of, name), bool):
            raise TypeError(f"{name}: expected True or False, got {getattr(of, name)!r}")


def _check_types(rule: SiteRule) -> None:
    errors = ("probe", "probe_minus_input", "estimate")
    _check_choices(rule, quality=tuple(THRESHOLDS), comparison=("<", "<="), carried=("auto", "residual", "value"))
    for name, expected in (("order", (1, 2)), ("error", errors)):
        if getattr(rule, name) is not None:
            _check_choices(rule, **{name: expected})
    _check_flags(rule, "warmup_inclusive")
    asked_sites(rule.sites)
    if rule.schedule is not None and not isinstance(rule.schedule, Schedule):
        raise TypeError(f"schedule: expected a Schedule, such as Schedule.every(4), got {rule.schedule!r}")
    for name, kinds in (("gate", (Gate, EstimateGate)), ("estimator", (Estimator,))):
        value = getattr(rule, name)
        if value is not None and (isinstance(value, type) or not isinstance(value, kinds)):
            forms = " or ".join(f"rules.{kind.__name__}" for kind in kinds)
            raise TypeError(f"{name}: expected an object with the methods of {forms}, got {value!r}")


def _check_together(rule: SiteRule) -> None:
    if rule.warmup_inclusive and rule.warmup_ratio is None:
        raise ValueError("warmup_inclusive: it says how warmup_ratio counts, and warmup_ratio is None")
    gate, estimator = rule.make_gate(), rule.make_estimator()
    if isinstance(gate, EstimateGate) and not isinstance(estimator, CheckedEstimator):
        asking = "error='estimate'" if rule.gate is None else f"gate={gate!r}"
        raise ValueError(f"{asking} needs an estimator with the methods of rules.CheckedEstimator, got {estimator!r}")
    if isinstance(gate, EstimateGate) and rule.probe_depth == 0:
        raise ValueError("probe_depth=0 leaves no probe to try the estimator on, which error='estimate' does")
    if rule.modulated() and rule.probe_depth:
        raise ValueError(f"gate={gate!r} looks at the first block's modulated input: it needs probe_depth=0")
    along_input = isinstance(estimator, DCTA) and estimator.along == "input"
    if isinstance(gate, EstimateGate) and along_input:
        raise ValueError(f"error='estimate' tries the estimator on the probe, and {estimator!r} goes along the input")
    if rule.form() == "value" and along_input:
        raise ValueError(f"carried='value' leaves no input for {estimator!r} to go along: set estimator=Reuse(), say")
    if isinstance(estimator, LearnedTable):
        steps = None if rule.schedule is None else rule.schedule.deep_steps(len(estimator.residuals))
        estimator.check_schedule(steps)
    sites = rule.asked_sites()
    rows = rule.schedule.rows if rule.schedule is not None else ()
    if rows and not (isinstance(rule.sites, tuple) and len(rows) == len(sites) == len(rule.sites)):
        raise ValueError(f"schedule: a table has a row for each site, got {len(rows)} rows and sites={rule.sites!r}")
    if sites[0].part == MODEL and (rule.blocks_on_every_step() or rule.modulated()):
        found = f"gate={rule.gate!r}" if rule.modulated() else f"probe_depth={rule.probe_depth}"
        raise ValueError(f"sites='model' has no blocks of its own: it needs probe_depth=0, got {found}")
    if isinstance(estimator, MeanVelocity) and (sites[0].part != MODEL or rule.form() == "value"):
        found = f"sites={rule.sites!r}, carried={rule.carried!r}"
        raise ValueError(f"MeanVelocity needs the latents: sites='model', carried='residual'; got {found}")
    if sites[0].part not in ("", MODEL) and (rule.schedule is None or estimator.probes):
        need = "They need a schedule, and an estimator that looks at no probe, such as Reuse()"
        raise ValueError(f"sites={rule.sites!r}: parts of blocks have no probe. {need}")
    if isinstance(estimator, TokenEstimator) and sites[0].part in ("", MODEL):
        raise ValueError(f"estimator={estimator!r} runs parts of blocks on some tokens: set sites='mlp', say")
    if rule.is_guided() and (len(sites) > 1 or sites[0].part not in ("", MODEL)):
        raise ValueError(f"estimator={estimator!r} goes by another call at one site, as 'model': sites={rule.sites!r}")
    if isinstance(estimator, FollowingEstimator) and (sites[0].part not in ("", MODEL) or len(sites) > 1):
        asking = "feedback" if rule.estimator is None else f"estimator={estimator!r}"
        raise ValueError(f"{asking} counts on every step, which it can at one site: sites={rule.sites!r} are several")
    if rule.feedback and rule.order == 2 and rule.estimator is None:
        raise ValueError("feedback goes with the line through two anchors: order=2 needs feedback=0")


def _check_replaced(rule: SiteRule) -> None:
    """Raises ValueError for a field that has another value than by default, and that nothing would read."""
    defaults = {field.name: field.default for field in fields(rule)}
    for by, replaced in REPLACES.items():
        owner = getattr(rule, by)
        if owner is None:
            continue
        for name in replaced:
            if getattr(rule, name) != defaults[name]:
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
