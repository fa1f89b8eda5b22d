"""Inputs of the fused operations, and what float64 makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dicache_compile.kernels import fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPUTED = (torch.float32, torch.float16, torch.bfloat16)
STORED = (*COMPUTED, *fused.FLOAT8)
EPS = torch.finfo(torch.float32).eps
State = tuple[Tensor, "Tensor | None"]  # (stored, scale)


def sliced(values: Tensor) -> Tensor:
    """The same values as the end of a joint sequence, as the image stream of a joint text and image sequence is."""
    if values.dim() < 2:
        return values
    joint = torch.cat([torch.full_like(values, float("nan")), values], dim=-2)
    return joint.narrow(-2, values.shape[-2], values.shape[-2])


def transposed(values: Tensor) -> Tensor:
    """The same values with the channels before the tokens in memory, as a convolution's are."""
    return values if values.dim() < 2 else values.transpose(-1, -2).contiguous().transpose(-1, -2)


def reversed_dimensions(values: Tensor) -> Tensor:
    """The same values with the first dimension last in memory: from rank 4 on no three of them can be merged."""
    back = tuple(reversed(range(values.dim())))
    return values.permute(back).contiguous().permute(back)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "sliced": sliced,
    "transposed": transposed,
    "reversed": reversed_dimensions,
}


@dataclass
class Numbers:
    """Draws tensors. Whole numbers are small, so that every float32 sum of them is exact in any order."""

    seed: int
    whole: bool

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def stream(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if self.whole:
            return torch.randint(-4, 5, shape, generator=self.generator).to(dtype).to(DEVICE)
        return torch.randn(shape, generator=self.generator).to(dtype).to(DEVICE)

    def state(self, shape: Sequence[int], dtype: torch.dtype) -> State:
        """(stored, scale), with powers of 2 for scales."""
        stored = self.stream(shape, dtype)
        if dtype not in fused.FLOAT8:
            return stored, None
        exponents = torch.randint(-1, 2, (*shape[:-1], 1), generator=self.generator)
        return stored, exponents.float().exp2().to(DEVICE)


@dataclass
class Case:
    """The arguments of one call of statistics."""

    h: Tensor
    x: Tensor
    h_prev: State
    x_prev: State
    ring: list[State]
    anchors: int

    def arguments(self) -> tuple[object, ...]:
        """Fresh copies of what is written."""
        written = [None if t is None else t.clone() for t in (*self.h_prev, *self.x_prev)]
        scales = [scale for _, scale in self.ring if scale is not None]
        return (self.h, self.x, *written, [p for p, _ in self.ring], scales, torch.tensor(self.anchors, device=DEVICE))

    def exact(self, additions: int | None = None) -> tuple[Tensor, Tensor]:
        """The sums in float64, and bounds of what each errs by in float32.

        A float32 sum errs by at most eps/2 times the sum of the terms' magnitudes for each addition that a term goes
        through (Higham, 4.4, to first order; eps instead of eps/2 covers the rest): by default as many as there are
        terms. Each term is a difference of up to three numbers, one of them a product with a scale, and each of these
        operations errs by eps/2 of the operands' magnitudes.
        """
        h, x = self.h.double(), self.x.double()
        h_prev = double(self.h_prev)
        nothing = torch.zeros_like(h)
        terms = [(h, h_prev), (h_prev,), (nothing,), (nothing,), (nothing,)]
        if self.ring and self.anchors > 1:
            terms[2] = (h, x, double(self.ring[(self.anchors - 2) % 2]))
        if self.x_prev[0] is not None:
            x_prev = double(self.x_prev)
            terms[3:] = [(x, x_prev), (x_prev,)]
        sums = torch.stack([(first - sum(others)).abs().sum() for first, *others in terms])
        sizes = torch.stack([sum(part.abs() for part in parts).sum() for parts in terms])  # type: ignore[union-attr]
        return sums, ((additions or h.numel()) + 4) * EPS * sizes


def double(state: State) -> Tensor:
    stored, scale = state
    return stored.double() if scale is None else stored.double() * scale.double()


def case(
    numbers: Numbers,
    shape: Sequence[int],
    dtype: torch.dtype,
    stored: torch.dtype,
    layouts: tuple[str, str] = ("contiguous", "contiguous"),
    *,
    x_prev: bool = True,
    anchors: int = 3,
) -> Case:
    h, x = (LAYOUTS[layout](numbers.stream(shape, dtype)) for layout in layouts)
    kept = [numbers.state(shape, stored) for _ in range(4)]
    return Case(h, x, kept[0], kept[1] if x_prev else (None, None), kept[2:] if anchors >= 0 else [], anchors)  # type: ignore[arg-type]


def same_bits(a: object, b: object) -> bool:
    """NaN equals NaN, whatever its bits: those of a NaN that was converted are not the same everywhere."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    a, b = a.float(), b.float()
    kept = ~(a.isnan() & b.isnan())
    return torch.equal(a[kept], b[kept])


def check_combined(out: Tensor, base: Tensor, state: Sequence[State], weights: Tensor, dtype: torch.dtype) -> float:
    """Holds a result of combine against float64; how much of its bound the largest error is.

    For each part one product with its scale, one with its weight and one sum, of eps/2 each, to first order; then
    the last rounding, which for numbers below the smallest normal one is absolute.
    """
    rows = zip(weights.double(), state, strict=True)
    parts = [torch.where(weight == 0, 0.0, weight * double(kept)) for weight, kept in rows]
    exact = base.double() + sum(parts)
    magnitude = base.double().abs() + sum(part.abs() for part in parts)
    info = torch.finfo(dtype)
    bound = (3 * len(parts) + 1) * EPS * magnitude + info.eps * (exact.abs() + info.tiny)
    errors = (out.double() - exact).abs()
    assert (errors <= bound).all()
    assert (out.dtype, out.shape, out.is_contiguous()) == (dtype, base.shape, True)
    return float((errors / bound).max())
