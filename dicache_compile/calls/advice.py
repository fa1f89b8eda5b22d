"""What people are told of a cache that is on and helps little: each thing once for each model, with the numbers.

Nothing of this is on the way of a step: the record is read a few times at most, where a generation starts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from ..config import DiCacheConfig
from ..errors import CacheWarning, StepError
from .findings import MAX_ALIKE, findings
from .record import History, of_row
from .state import StreamState
from .store import Lost

_LOOKS = 12  # at the record, of each model
_FIRST_LOOK = 64  # calls, where only the device knows when a generation starts; then at twice as many, and so on


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

    def came_back(self, name: str, lost: Lost, run: int | None, time: Tensor | None) -> None:
        """A stream is called again that had to give way; told if that was in the middle of a generation."""
        if "lost" in self._said or not self._looks:
            return
        if run is None and time is not None and lost.run is None:
            self._looks -= 1
            moved = time.float().amax() - lost.time
            half_way = bool(((moved * lost.direction > 0) | ((lost.direction == 0) & (moved != 0))).any())
        else:
            half_way = run is not None and run == lost.run
        if half_way:
            self.say(
                "lost",
                f"stream {name!r} lost its state half-way through a generation, and needs new anchors: more streams "
                f"take turns than {lost.bound} allows. Allow for as many as there are at a time",
            )

    def compiled_again(self, name: str, state: StreamState) -> None:
        """A stream's step is the first of a graph that was compiled for it just now."""
        index = state.index  # where the host knows it
        if state.calls > 1 and index is not None and index > 1:
            self.say(
                "compiled",
                f"the model was compiled again at step {index} of a generation of stream {name!r}. Set "
                "TORCH_LOGS=recompiles to see what had changed. Pass a number that changes from step to step as a "
                "tensor, and change a model or the size of its inputs between generations",
            )

    def stepped(self, name: str, history: History, state: StreamState) -> None:
        """A stream has made a step. Looks at its earlier generations where this one is the first of another."""
        if not self._looks or not self._starts(state):
            return
        self._looks -= 1
        for row, generations in history.by_row().items():
            for what, text in findings(of_row(name, row), generations[:-1]):
                self.say(what, text)

    def _starts(self, state: StreamState) -> bool:
        """Whether the last step was a generation's first, as far as can be told without waiting for the device."""
        index = state.tensors["index"]
        if state.index is not None or index.device.type == "cpu":
            return state.calls == 1 if state.index is not None else index.amin().item() == 1
        self._calls += 1
        if self._calls < self._next:
            return False
        self._next *= 2
        return True

    def new_session(self, calls: Sequence[int]) -> None:
        """A graph meets another model; `calls`: how often it was called with each of those before."""
        if len(calls) >= MAX_ALIKE and all(number <= 1 for number in calls[-MAX_ALIKE:]):
            self.say(
                "sessions",
                f"the last {MAX_ALIKE} calls came with weights that no call before had, so each began anew and nothing "
                "can be reused: keep the model's parameters the same objects from call to call",
            )
