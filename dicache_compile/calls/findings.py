"""What the record of a stream's generations shows that its user should know, and what to do about it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from ..config import DiCacheConfig
from ..program import of_rules
from ..rules import GuidedEstimator
from ..site_rule import SiteRule
from .record import Call, Row
from .streams import SINGLE

MAX_ALIKE = 6  # generations of one step in a row, or sessions of one call, that are worth a word
_SHORT = 4  # steps of the shortest generation that is worth a word
_MUCH, _LONG = 0.9, 10  # share of reused steps that is, in a generation of so many at least
_IN_TURN = 4  # generations that are by turns long and short
BOTH = "cond_uncond"  # what diffusers calls a batch of both branches
_SATURATED = 8  # reused steps of a generation, of which more than half saturated are
Recorded = Sequence[tuple[Row, Call]]


def findings(name: str, generations: Sequence[Recorded]) -> Iterator[tuple[str, str]]:
    """(what it is, the text) of each thing that the stream's finished generations show, the newest last."""
    steps = [[row for row, _ in generation] for generation in generations]
    configs = [generation[0][1].config for generation in generations]
    if steps:
        yield from _not_finite(name, steps[-1], configs[-1].all_rules()[0])
        # Of what is reused too often the estimate is saturated, too: one word is enough.
        yield from list(_much(name, steps[-1])) or _saturated(name, steps[-1], configs[-1].all_rules()[0])
        yield from _unpaired(name, configs[-1])
    if len(steps) > 1:
        yield from _nothing(name, steps[-2:], configs[-2:])
    if len(steps) >= _IN_TURN:
        yield from _unlike(name, generations[-_IN_TURN:])
    if len(steps) >= MAX_ALIKE:
        yield from _single(name, steps[-MAX_ALIKE:])


def _much(name: str, steps: Sequence[Row]) -> Iterator[tuple[str, str]]:
    reused = sum(not _ran_deep(step) for step in steps)
    if len(steps) >= _LONG and reused >= _MUCH * len(steps):
        yield (
            "much",
            f"{reused} of {len(steps)} steps of stream {name!r} were reused in one generation, which is more than "
            "an image can bear: lower threshold, bound max_consecutive_skips, or have more steps in the schedule",
        )


def _not_finite(name: str, steps: Sequence[Row], rule: SiteRule) -> Iterator[tuple[str, str]]:
    if rule.schedule is not None:
        return  # which measures nothing
    # On forced steps there may be nothing to compare with.
    bad = sum(not (step["forced"] or math.isfinite(step["error"])) for step in steps[1:])
    if bad:
        yield (
            "finite",
            f"the error was infinite or not a number on {bad} of {len(steps)} steps of stream {name!r}, and such steps "
            "run deep. Look for these values in what the model gives without the cache. In float16 they often are an "
            "overflow: run the model in bfloat16",
        )


def _saturated(name: str, steps: Sequence[Row], rule: SiteRule) -> Iterator[tuple[str, str]]:
    if rule.gamma_range is None or rule.gamma_range[0] == rule.gamma_range[1]:
        return
    gammas = [step["gamma"] for step in steps if not math.isnan(step["gamma"])]
    most = rule.gamma_range[1]
    held = sum(math.isclose(gamma, most, rel_tol=1e-6) for gamma in gammas)  # it is kept in float32
    if len(gammas) >= _SATURATED and 2 * held > len(gammas):
        yield (
            "saturated",
            f"gamma was at the upper end of gamma_range={rule.gamma_range} on {held} of {len(gammas)} reused steps of "
            f"stream {name!r}: the probe has moved further than the estimate may go. Widen gamma_range, or reuse fewer "
            "steps in a row",
        )


def _nothing(
    name: str, generations: Sequence[Sequence[Row]], configs: Sequence[DiCacheConfig]
) -> Iterator[tuple[str, str]]:
    steps = [step for generation in generations for step in generation]
    if any(len(generation) < _SHORT for generation in generations) or not all(map(_ran_whole, steps)):
        return
    rules = [rule for config in configs for rule in config.all_rules()]
    if any(rule.schedule is not None or (rule.threshold == 0 and rule.gate is None) for rule in rules):
        return  # as it was asked for
    rule = configs[-1].all_rules()[0]
    lengths = " and ".join(str(len(generation)) for generation in generations)
    text = f"nothing was reused in two generations of stream {name!r}, of {lengths} steps: "
    errors = [step["accumulated"] for step in steps if not step["forced"] and not math.isnan(step["accumulated"])]
    if not errors:
        text += "all steps were forced. Shorten warmup_steps, warmup_ratio, final_steps or deep_steps"
    elif rule.threshold is not None and min(errors) >= rule.threshold:
        text += f"smallest error {min(errors):.2g}, threshold {rule.threshold:g}. Raise threshold"
    else:
        text += f"smallest error {min(errors):.2g}. Loosen the gate or max_consecutive_skips"
    yield "nothing", text


def _unpaired(name: str, config: DiCacheConfig) -> Iterator[tuple[str, str]]:
    """Where one call of guidance is to be estimated from another, and nobody says which call is which."""
    last = name.rpartition("/")[2]
    guided = next((one for rule in config.all_rules() if isinstance(one := rule.estimator, GuidedEstimator)), None)
    if guided is None or last in (guided.stream, guided.partner):
        return
    if last.isdigit() or last in (SINGLE, BOTH):
        yield (
            "unpaired",
            f"{guided.stream!r} is to be estimated from {guided.partner!r}, and the calls of stream {name!r} are "
            "neither, so nothing of that rule is reused. Where a call brings both branches as one batch, set "
            "enable_cache(..., guidance_batch='negative first') or use split_guidance; else name each call, as with "
            f"stream({guided.partner!r})",
        )


def _unlike(name: str, generations: Sequence[Recorded]) -> Iterator[tuple[str, str]]:
    """Where nobody says where runs begin, long and short ones in turn are a sign that they were taken apart wrongly."""
    lengths = [len(generation) for generation in generations]
    if any(call.run is not None for generation in generations for _, call in generation):
        return
    if min(lengths) > 1 and all(2 * min(pair) <= max(pair) for pair in itertools.pairwise(lengths)):
        yield (
            "unlike",
            f"the last generations of stream {name!r} had {', '.join(map(str, lengths))} steps, by their timesteps. If "
            "a run was taken for two, or two for one, put `with generation():` around each denoising loop",
        )


def _single(name: str, generations: Sequence[Sequence[Row]]) -> Iterator[tuple[str, str]]:
    if all(len(generation) == 1 for generation in generations):
        times = ", ".join(f"{generation[0]['timestep']:.4g}" for generation in generations)
        yield (
            "single",
            f"each of the last {len(generations)} calls of stream {name!r} began a generation (timesteps {times}), "
            "and a first step cannot be reused. Put `with generation():` around each denoising loop; look at the "
            "timestep that explain(model) names; for a model of one step set num_steps=1",
        )


def _ran_deep(step: Row) -> bool:
    """Whether any rule's sites ran."""
    return any(step[name] == 1 for name in of_rules("deep", step))


def _ran_whole(step: Row) -> bool:
    """Whether no rule's sites were reused."""
    return all(step[name] != 0 for name in of_rules("deep", step))
