"""What the host tells a step of its config: numbers that no compiled graph depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..config import DiCacheConfig
from ..errors import StepError
from ..estimators import LearnedTable
from ..program import of_rule as slot_name
from ..rules import GuidedEstimator, Setting
from ..site_rule import SiteRule
from ..write.control import DEEP_STEPS, LIMITS, NO_LIMIT
from ..write.guidance import ROLE


@dataclass(frozen=True, slots=True)
class Settings:
    """What the slots hold that the host writes, for one generation. `StreamState.tell` writes it."""

    values: Mapping[str, tuple[float, ...]]  # by slot; of "deep_steps" the steps whose places are set


class Told:
    """A config at run time. What it tells is worked out once for each length of a generation."""

    def __init__(self, config: DiCacheConfig) -> None:
        self.config = config
        self._of_rules = [
            {slot: _floats(setting) for slot, setting in rule.settings().items()} for rule in config.rules_in_force()
        ]
        self._known: dict[tuple[int | None, int], Settings] = {}

    def settings(self, num_steps: int | None, warmup: int = 0) -> Settings:
        """What to tell of a generation of that many steps (None: unknown), the first `warmup` of them deep.

        Raises StepError where a number is needed and there is none.
        """
        steps = num_steps
        if (steps, warmup) not in self._known:
            self._known[steps, warmup] = self._settings(steps, warmup)
        return self._known[steps, warmup]

    def _settings(self, steps: int | None, warmup: int) -> Settings:
        found: dict[str, tuple[float, ...]] = {}
        for number, (rule, settings) in enumerate(zip(self.config.all_rules(), self._of_rules, strict=True)):
            if steps is None and SiteRule.needs_num_steps(rule):
                told = "which only a diffusers pipeline tells by itself: set num_steps"
                raise StepError(f"{_which_need_it(rule)} of a generation, {told}")
            _check_fitted(rule, steps)
            of_rule = {**_limits(rule, steps, warmup), **settings}
            found |= {slot_name(slot, number): value for slot, value in of_rule.items()}
        return Settings(found)


def guided_by_slot(config: DiCacheConfig) -> Mapping[str, GuidedEstimator]:
    """The estimators that go by another call, by the slot that tells them what a stream is to them."""
    return {
        slot_name(ROLE, number): rule.estimator
        for number, rule in enumerate(config.rules_in_force())
        if isinstance(rule.estimator, GuidedEstimator)
    }


def _limits(rule: SiteRule, steps: int | None, warmup: int) -> dict[str, tuple[float, ...]]:
    if rule.schedule is not None:
        return {LIMITS: (warmup, NO_LIMIT, NO_LIMIT), DEEP_STEPS: rule.schedule.deep_steps(steps)}
    first, last = forced_steps(rule, steps)
    limit = rule.max_consecutive_skips
    assert limit != "auto"  # the rule is settled
    limits = (max(first, warmup), NO_LIMIT if last is None else last, NO_LIMIT if limit is None else limit)
    return {LIMITS: limits, DEEP_STEPS: _listed(rule, steps)}


def _check_fitted(rule: SiteRule, steps: int | None) -> None:
    fitted = rule.estimator.num_steps if isinstance(rule.estimator, LearnedTable) else None
    if fitted is not None and steps not in (None, fitted):
        raise StepError(f"estimator={rule.estimator!r} was fitted for {fitted} steps, and this generation has {steps}")


def _which_need_it(config: SiteRule) -> str:
    if config.schedule is not None:
        return f"{config.schedule} needs the number of steps"
    if config.deep_shares():
        return f"deep_steps={config.deep_steps} are shares of the number of steps"
    return f"warmup_ratio={config.warmup_ratio} and final_steps={config.final_steps} need the number of steps"


def forced_steps(config: SiteRule, steps: int | None) -> tuple[int, int | None]:
    """(steps of warm-up, index from which every step is forced or None) for a generation of that many steps."""
    warmup, last = config.warmup_steps, None
    if steps is not None:
        if config.warmup_ratio is not None:
            warmup = max(warmup, int(config.warmup_ratio * steps) + config.warmup_inclusive)
        if config.final_steps:
            last = max(steps - config.final_steps, 0)
    return warmup, last


def _listed(config: SiteRule, steps: int | None) -> tuple[int, ...]:
    """The steps that `deep_steps` are in a generation of that many; shares need the number."""
    if not config.deep_shares():
        return tuple(int(step) for step in config.deep_steps)
    assert steps is not None
    # A product that is whole but for its rounding is that whole number.
    return tuple(sorted({int(share * steps + 1e-9) for share in config.deep_steps}))


def _floats(setting: Setting) -> tuple[float, ...]:
    numbers = setting.value if isinstance(setting.value, tuple) else (setting.value,)
    # What is beyond float32 is infinite in it; `fill_` would refuse it.
    return tuple(float(n) if abs(n) <= torch.finfo(torch.float32).max else float("inf") * n for n in numbers)
