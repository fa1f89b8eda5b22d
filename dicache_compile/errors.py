"""What can go wrong: a graph that cannot be cut, a step that cannot be captured, a call that cannot be answered.

A refusal is a class for each kind of reason. It is made of what was found, of the node where it was, and of what to do
about it where that is not the same for all of its kind; the operation and its line in the user's code are added here.
"""

from __future__ import annotations

import copy
from typing import ClassVar

from torch import fx


def place(node: fx.Node) -> str:
    """An operation and where it is in the user's code: '`rand` (model.py:12: x = torch.rand(3))'."""
    target = getattr(node.target, "overloadpacket", node.target)
    return f"`{target if isinstance(target, str) else getattr(target, '__name__', target)}` ({source_line(node)})"


def source_line(node: fx.Node) -> str:
    """Where in the user's code a node comes from: 'model.py:12: x = torch.rand(3)'."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip(" ^~\n")]
    if len(lines) < 2 or not lines[-2].startswith("File "):
        return "unknown line"
    path, _, rest = lines[-2].removeprefix('File "').partition('"')
    number = rest.removeprefix(", line ").partition(",")[0]
    return f"{path.rpartition('/')[2]}:{number}: {lines[-1]}"


class UnsupportedGraphError(RuntimeError):
    """A graph that is not cached. Its `reason` is one sentence: what was found, where, and what can be done."""

    advice: str = ""  # what the user can do
    asks_for_use: ClassVar[bool] = True  # whether the true reason may be how the model was compiled: see `mistakes`

    def __init__(self, found: str, node: fx.Node | None = None, advice: str = "") -> None:
        self.stage = ""  # the pass that refused, once it is known
        self.found = f"{found}: {place(node)}" if node is not None else found
        self.advice = advice or self.advice
        super().__init__(self.reason)

    @property
    def reason(self) -> str:
        return "; ".join(filter(None, (self.found, self.advice)))

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}" if self.stage else self.reason

    def advising(self, *advice: str | None) -> UnsupportedGraphError:
        """The same refusal with other advice."""
        other = copy.copy(self)
        other.advice = "; ".join(filter(None, advice))
        return other


class TrainingError(UnsupportedGraphError):
    """A graph that gradients are taken through."""

    advice = "run the model under torch.no_grad()"
    asks_for_use = False


class NoTrunkError(UnsupportedGraphError):
    """No chain of blocks was found, or none of that name."""

    advice = "name the list of its blocks with trunk="


class NothingToSkipError(UnsupportedGraphError):
    """A trunk with too few blocks to leave any out."""

    advice = "if there are more blocks, name all lists of them with trunk="


class NotCarriedError(UnsupportedGraphError):
    """What leaves the deep blocks cannot be estimated: it is no tensor of numbers, or of no known size."""

    advice = "compute it before the blocks, or after them from what they carry"


class NoCounterpartError(NotCarriedError):
    """Of what leaves the deep blocks it is not known where it enters the trunk or leaves the probe."""

    advice = (
        "leave out only blocks that hand on values of one shape, with sites=(first, last) or trunk=; or keep the "
        "result itself, with carried='value' and a schedule"
    )


class TokenOrderError(UnsupportedGraphError):
    """The deep blocks' tokens stand in an order that cannot be followed back."""

    advice = (
        "leave out only blocks that keep the order of their tokens, with sites=(first, last) or trunk=; or keep the "
        "result itself, with carried='value' and a schedule"
    )


class NoResultError(UnsupportedGraphError):
    """A gate asks for a result that its rule's sites do not give."""

    advice = "give the gate a lower number, or the rule more sites="
    asks_for_use = False


class MixedTokensError(UnsupportedGraphError):
    """What a site computes of a token cannot be computed without the others."""

    advice = "set sites= to parts that compute each token by itself, or use an estimator for all tokens, as Reuse()"


class EffectError(UnsupportedGraphError):
    """The deep blocks do more than compute: they draw random numbers, or write to what others read."""

    advice = "have the model make a new tensor there, as with x = x + y for x += y"


class CrossingError(UnsupportedGraphError):
    """A value would have to cross the cut that cannot."""

    advice = "make a tensor of it, or compute it in the blocks that read it"


class CollectiveError(UnsupportedGraphError):
    """Ranks would decide apart whether to run a collective."""

    advice = "leave agree= out, give it the group of the ranks, or set ranks_agree=True if a gate of your own reduces"
    asks_for_use = False


class TimestepError(UnsupportedGraphError):
    """It is not known which input is the timestep."""

    advice = (
        "name it with timestep_input=, or, for a model that has none, set streams=1 and num_steps= so that its steps "
        "are counted"
    )
    asks_for_use = False


class LatentsError(UnsupportedGraphError):
    """It is not known which input is denoised."""

    advice = "leave out the rule whose estimator goes by another call of guidance"
    asks_for_use = False


class RowsError(UnsupportedGraphError):
    """It is not known which parts of values are one row's."""

    advice = "leave out rows='independent': the rows of a batch then decide together"
    asks_for_use = False


class LoweringError(UnsupportedGraphError):
    """Inductor cannot compile a part of the cut graph."""

    asks_for_use = False


class ExportError(UnsupportedGraphError):
    """A model that cannot be put into a package, or be exported as one graph."""

    asks_for_use = False


class StepError(RuntimeError):
    """A call of a compiled model that cannot be answered rightly, with what to do about it."""


class GuidanceBatchError(RuntimeError):
    """A batch of both branches of guidance that cannot be computed half by half."""

    def __init__(self, found: str) -> None:
        advice = "leave out guidance_batch, or have the model be called with each branch by itself"
        super().__init__(f"{found}; {advice}")


class CaptureError(RuntimeError):
    """A step that cannot be captured; it runs on another engine, for this reason."""


class UncachedWarning(UserWarning):
    """A graph runs without the cache, as torch.compile would run it; the text says why."""


class CacheWarning(UserWarning):
    """A cache that is on and helps little, or not as its config says; the text has the numbers and what to do."""
