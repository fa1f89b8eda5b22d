"""What people are told of a cache that is on and helps little: each thing once for each model, with the numbers.

Nothing of this is on the way of a step: the record is read a few times at most, where a generation starts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from torch import Tensor

from ..config import DiCacheConfig
from ..errors import CacheWarning, StepError
from ..write.control import of_rules
from .record import History, Row
from .state import StreamState
from .store import Lost

_LOOKS = 12  # at the record, of each model
_FIRST_LOOK = 64  # calls, where only the device knows when a generation starts; then at twice as many, and so on
MAX_ALIKE = 6  # generations of one step in a row, or sessions of one call, that are worth a word
_SHORT = 4  # steps of the shortest generation that is worth a word
_MUCH, _LONG = 0.9, 10  # share of reused steps that is, in a generation of so many at least


class Advice:
    """What one model has been told of."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._looks = _LOOKS
        self._calls, self._next = 0, _FIRST_LOOK

    def say(self, what: str, text: str) -> None:
        """Warns, the first time."""
        if what not in self._said:
            self._said.add(what)
            warnings.warn(text, CacheWarning, stacklevel=2)

    def contradicted(self, config: DiCacheConfig, own: int, said: int) -> None:
        """A run is of another number of steps than the config says. Raises StepError if that has a schedule."""
        rule = next((rule for rule in config.all_rules() if rule.deep_steps and not rule.deep_shares()), None)
        if rule is not None:
            raise StepError(
                f"deep_steps={rule.deep_steps} are steps of num_steps={own}, and this run has {said}: give "
                f"deep_steps as shares of a run, from 0 to below 1, or num_steps={said} and the steps of that many"
            )
        self.say(
            "length",
            f"this run has {said} steps, and the config says num_steps={own}: {said} counts. Leave num_steps out where "
            "runs say it themselves, as diffusers pipelines do",
        )

    def misled(self, worse: Sequence[object], uncached: bool) -> None:
        """Estimates turned out to be further off than plain reuse."""
        self.say(
            "misled",
            "estimates of what the deep blocks give are further from it than what they gave on the step before "
            f"({'; '.join(map(str, worse))}). The blocks may change the order of tokens, carry another value than was "
            "found, or not add to it. Look at explain(model, ..., passes=True); name the lists of blocks by trunk=, or "
            "set carried='value'. With carried='residual' it stays as it is, unchecked"
            + (". With strict=True every step runs deep from here on" if uncached else ""),
        )

    def came_back(self, name: str, lost: Lost, run: int | None, time: Tensor | None, limit: int) -> None:
        """A stream is called again that had to give way; told if that was in the middle of a generation."""
        if "lost" in self._said or not self._looks:
            return
        if run is None and time is not None and lost.run is None:
            self._looks -= 1
            moved = time.float().amax() - lost.time
            half_way = bool((moved * lost.direction > 0) | ((lost.direction == 0) & (moved != 0)))
        else:
            half_way = run is not None and run == lost.run
        if half_way:
            self.say(
                "lost",
                f"stream {name!r} lost its state half-way through a generation, and needs new anchors: more streams "
                f"take turns than max_streams={limit}. Set max_streams to as many as there are at a time",
            )

    def stepped(self, name: str, history: History, state: StreamState) -> None:
        """A stream has made a step. Looks at its earlier generations where this one is the first of another."""
        if not self._looks or not self._starts(state):
            return
        self._looks -= 1
        recorded = history.generations()[:-1]
        earlier = [[row for row, _ in generation] for generation in recorded]
        if earlier:
            self._much(name, earlier[-1])
        if len(earlier) > 1:
            self._nothing(name, earlier[-2:], [generation[0][1].config for generation in recorded[-2:]])
        if len(earlier) >= MAX_ALIKE:
            self._single(name, earlier[-MAX_ALIKE:])

    def _starts(self, state: StreamState) -> bool:
        """Whether the last step was a generation's first, as far as can be told without waiting for the device."""
        index = state.tensors["index"]
        if state.index is not None or index.device.type == "cpu":
            return state.calls == 1 if state.index is not None else index.item() == 1
        self._calls += 1
        if self._calls < self._next:
            return False
        self._next *= 2
        return True

    def _much(self, name: str, steps: Sequence[Row]) -> None:
        reused = sum(not _ran_deep(step) for step in steps)
        if len(steps) >= _LONG and reused >= _MUCH * len(steps):
            self.say(
                "much",
                f"{reused} of {len(steps)} steps of stream {name!r} were reused in one generation, which is more than "
                "an image can bear: lower threshold, bound max_consecutive_skips, or have more steps in the schedule",
            )

    def _nothing(self, name: str, generations: Sequence[Sequence[Row]], configs: Sequence[DiCacheConfig]) -> None:
        steps = [step for generation in generations for step in generation]
        if any(len(generation) < _SHORT for generation in generations) or not all(map(_ran_whole, steps)):
            return
        rules = [rule for config in configs for rule in config.all_rules()]
        if any(rule.schedule is not None or (rule.threshold == 0 and rule.gate is None) for rule in rules):
            return  # as it was asked for
        config = configs[-1].all_rules()[0]
        lengths = " and ".join(str(len(generation)) for generation in generations)
        text = f"nothing was reused in two generations of stream {name!r}, of {lengths} steps: "
        errors = [step["accumulated"] for step in steps if not step["forced"] and not math.isnan(step["accumulated"])]
        if not errors:
            text += "all steps were forced. Shorten warmup_steps, warmup_ratio, final_steps or deep_steps"
        elif config.gate is None and min(errors) >= config.threshold:
            text += f"smallest error {min(errors):.2g}, threshold {config.threshold:g}. Raise threshold"
        else:
            text += f"smallest error {min(errors):.2g}. Loosen the gate or max_consecutive_skips"
        self.say("nothing", text)

    def _single(self, name: str, generations: Sequence[Sequence[Row]]) -> None:
        if all(len(generation) == 1 for generation in generations):
            times = ", ".join(f"{generation[0]['timestep']:.4g}" for generation in generations)
            self.say(
                "single",
                f"each of the last {len(generations)} calls of stream {name!r} began a generation (timesteps {times}), "
                "and a first step cannot be reused. Put `with generation():` around each denoising loop; look at the "
                "timestep that explain(model) names; for a model of one step set num_steps=1",
            )

    def new_session(self, calls: Sequence[int]) -> None:
        """A graph meets another model; `calls`: how often it was called with each of those before."""
        if len(calls) >= MAX_ALIKE and all(number <= 1 for number in calls[-MAX_ALIKE:]):
            self.say(
                "sessions",
                f"the last {MAX_ALIKE} calls came with weights that no call before had, so each began anew and nothing "
                "can be reused: keep the model's parameters the same objects from call to call",
            )


def _ran_deep(step: Row) -> bool:
    """Whether any rule's sites ran."""
    return any(step[name] == 1 for name in of_rules("deep", step))


def _ran_whole(step: Row) -> bool:
    """Whether no rule's sites were reused."""
    return all(step[name] != 0 for name in of_rules("deep", step))
