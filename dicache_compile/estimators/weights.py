"""The weights of anchors, from where they and the step lie in time.

Each function takes `elapsed`, the time since the newest anchor, and `gaps`, the times between the anchors, the newest
first; both have one sign, all are float32 of shape (). It gives one weight for each anchor, the newest first: one more
than there are gaps. F_1 is what the newest anchor holds, F_2 the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = "float | Tensor"
Weights: TypeAlias = "list[Number]"


def lagrange(elapsed: Tensor, gaps: Sequence[Tensor]) -> Weights:
    """On the polynomial through all anchors: sum_j F_j prod_(i != j) (t - t_i) / (t_j - t_i)."""
    places: list[Number] = [0.0]
    for gap in gaps:
        places.append(places[-1] - gap)
    found: Weights = []
    for j, place in enumerate(places):
        weight: Number = 1.0
        for i, other in enumerate(places):
            if i != j:
                weight = weight * ((elapsed - other) / (place - other))
        found.append(weight)
    return found


def differences(gaps: Sequence[Tensor]) -> list[Weights]:
    """TaylorSeer's derivatives of each order as weights of the anchors (arXiv 2503.06923, `derivative_approximation`).

    That of order i + 1 is the change of that of order i since the anchor before, over the gap between both. Beyond
    order 1 these are not the derivatives of the polynomial through the anchors.
    """
    count = len(gaps) + 1
    orders: list[Weights] = [[1.0, *[0.0] * (count - 1)]]
    # `rows[j]` is the derivative of the order at hand at the j-th anchor.
    rows: list[Weights] = [[float(i == j) for i in range(count)] for j in range(count)]
    while len(rows) > 1:
        rows = [
            [_over(new - old, gap) for new, old in zip(newer, older, strict=True)]
            for newer, older, gap in zip(rows, rows[1:], gaps, strict=False)
        ]
        orders.append(rows[0])
    return orders


def series(gaps: Sequence[Tensor], factors: Sequence[Number]) -> Weights:
    """F_1 and its derivatives by `differences`, each times its factor; the first factor is that of F_1."""
    orders = differences(gaps)
    return [_sum(factor * order[j] for factor, order in zip(factors, orders, strict=True)) for j in range(len(orders))]


def taylor(elapsed: Tensor, gaps: Sequence[Tensor]) -> Weights:
    """sum_i D_i elapsed^i / i!, with the derivatives of `differences`."""
    return series(gaps, [1.0, *(elapsed**i / math.factorial(i) for i in range(1, len(gaps) + 1))])


def three(elapsed: Tensor, gaps: Sequence[Tensor], share: Number, bend: Number) -> Weights:
    """F_1 + elapsed share ((1 + bend) D - bend D'), D = (F_1 - F_2) / gaps[0], D' = (F_2 - F_3) / gaps[1]."""
    newer = elapsed * share * (1 + bend) / gaps[0]
    older = elapsed * share * bend / gaps[1]
    return [1 + newer, -newer - older, older]


def by_count(available: Tensor, most: int, of: Callable[[int], Weights]) -> Weights:
    """`of(n)` for as many anchors as are available, n of at least 1 and at most `most`; the weights of others are 0."""
    chosen: Weights = [*of(1), *[0.0] * (most - 1)]
    for count in range(2, most + 1):
        more = [*of(count), *[0.0] * (most - count)]
        chosen = [_if(available >= count, new, old) for new, old in zip(more, chosen, strict=True)]
    return chosen


def _if(condition: Tensor, yes: Number, no: Number) -> Number:
    if isinstance(yes, float) and isinstance(no, float) and yes == no:
        return yes
    return torch.where(condition, yes, no)


def _over(difference: Number, gap: Tensor) -> Number:
    """The quotient; a number that is 0 stays one, so that nothing is computed for it."""
    return 0.0 if isinstance(difference, float) and difference == 0 else difference / gap


def _sum(terms: Iterable[Number]) -> Number:
    total: Number = 0.0
    for term in terms:
        if not (isinstance(term, float) and term == 0):
            total = term + total if not (isinstance(total, float) and total == 0) else term
    return total
