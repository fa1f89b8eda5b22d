"""Methods that run deep on every so manyth step, and forecast in between."""

from __future__ import annotations

from typing import Literal

from ..estimators import AdamsBashforth, BandSplit, FoCa, Hermite, HyCa, Reuse, Spectrum, Taylor, Tokens
from ..planning import growing, tapered
from ..rules import Estimator
from ..schedules import Schedule
from .method import Fields, method

Where = Literal["trunk", "modules"]
_TRUNK = "forecasts the trunk's residual by default, as its 'lite' forms do; where='modules' is the paper's"


@method("taylorseer", "TaylorSeer, arXiv 2503.06923", _TRUNK)
def taylorseer(interval: int = 6, order: int = 1, first: int = 3, where: Where = "trunk") -> Fields:
    """A series in the steps since the last deep one.

    `where="modules"` forecasts the results of every attention and MLP apart, before their gates: as published, at
    (order + 1) tensors for each.
    """
    return _on_schedule(Taylor(order, first=first), Schedule.every(interval, after=first), where)


@method("hicache", "HiCache, arXiv 2508.16984", _TRUNK)
def hicache(interval: int = 5, order: int = 2, scale: float = 0.5, first: int = 2, where: Where = "trunk") -> Fields:
    """TaylorSeer's differences with Hermite polynomials, which damp the higher orders by `scale`."""
    return _on_schedule(Hermite(order, scale=scale), Schedule.every(interval, after=first), where)


@method("foca", "FoCa, arXiv 2508.16211", f"{_TRUNK}; between steps of equal length, as in the paper's equations")
def foca(interval: int = 6, first: int = 3, where: Where = "trunk") -> Fields:
    """A forecast by BDF2 that Heun's rule corrects."""
    return _on_schedule(FoCa(), Schedule.every(interval, after=first), where)


@method("hyca", "HyCa, arXiv 2510.04188", f"{_TRUNK}; the paper gives each solver's weights for one step ahead alone")
def hyca(
    of_channel: tuple[int, ...],
    solvers: tuple[str, ...] = ("taylor", "ab2"),
    interval: int = 7,
    first: int = 3,
    where: Where = "trunk",
) -> Fields:
    """Each channel has the solver that its cluster fits best; `calibrate(recording, "hyca")` finds `of_channel`."""
    return _on_schedule(HyCa(solvers, of_channel), Schedule.every(interval, after=first), where)


@method("abcache", "AB-Cache, arXiv 2504.10540", "what it keeps on reused steps is not known: here nothing")
def abcache(order: int = 2, interval: int = 6, first: int = 5, num_steps: int = 50) -> Fields:
    """Weights as of an Adams-Bashforth step on the model's results; deep on multiples of `interval` after `first`."""
    mask = [step < first or step % interval == 0 for step in range(num_steps)]
    return {
        "schedule": Schedule.mask(mask),
        "estimator": AdamsBashforth(order),
        "sites": "model",
        "probe_depth": 0,
        "num_steps": num_steps,
    }


@method("freqca", "FreqCa, arXiv 2510.08669", "without its choice of a transform and an order by the model's name")
def freqca(
    interval: int = 6,
    grid: tuple[int, int] | None = None,
    order: int = 2,
    scale: float = 0.71,
    cutoff: float = 0.1,
    first: int = 3,
) -> Fields:
    """Low frequencies among the tokens of the trunk's result are reused, high ones forecast.

    `grid` is (rows, columns) of the tokens, for cosines of a picture as on FLUX; None: the tokens are one sequence, as
    on Qwen-Image.
    """
    return {
        "schedule": Schedule.every(interval, after=first),
        "estimator": BandSplit(order, scale, first, cutoff=cutoff, grid=grid),
        "carried": "value",
    }


@method(
    "spectrum",
    "Spectrum, arXiv 2603.01623",
    "computes in float32, where it rounds to bfloat16; the published growing share is not there",
)
def spectrum(
    num_steps: int = 50,
    growth: float = 0.75,
    share: float = 0.5,
    degree: int = 4,
    ridge: float = 0.1,
    window: float = 2.0,
    first: int = 5,
) -> Fields:
    """Chebyshev polynomials fitted to the trunk's result on all deep steps, blended with a line; a growing window.

    `growth` is the published `flex_window` (0.75, or 3 for the faster setting), `share` its w.
    """
    return {
        "schedule": growing(num_steps, first=first, window=window, growth=growth),
        "estimator": Spectrum(degree, ridge, share),
        "carried": "value",
        "num_steps": num_steps,
    }


@method("fora", "FORA, arXiv 2407.01425")
def fora(interval: int = 3) -> Fields:
    """The last results of every attention and MLP, on every so manyth step anew."""
    return _on_schedule(Reuse(), Schedule.every(interval), "modules")


@method(
    "toca",
    "ToCa, arXiv 2410.05317",
    "scores a token by how far it has moved, not by attention maps; one share for all steps and layers; without `grid` "
    "the best token of a cell has no bonus",
)
def toca(
    interval: int = 3,
    share: float = 0.1,
    age_weight: float = 0.25,
    num_steps: int = 50,
    grid: tuple[int, int] | None = None,
) -> Fields:
    """On reused steps MLPs compute a share of their tokens, and attentions are reused as a whole.

    With `grid`, the rows and columns of the tokens, the best one of each cell of 2 x 2 counts 1.6 times.
    """
    schedule = tapered(num_steps, interval=interval)
    tokens = Tokens(share, age_weight=age_weight, period=interval, grid=grid)
    return {**_on_schedule(tokens, schedule, "modules"), "num_steps": num_steps}


def _on_schedule(estimator: Estimator, schedule: Schedule, where: Where) -> Fields:
    if where not in ("trunk", "modules"):
        raise ValueError(f"where: expected 'trunk' or 'modules', got {where!r}")
    sites = "trunk" if where == "trunk" else ("attention", "cross_attention", "mlp")
    return {"schedule": schedule, "estimator": estimator, "sites": sites}
