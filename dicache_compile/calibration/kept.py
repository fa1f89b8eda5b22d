"""An even choice of rows, that becomes fewer as there is no more room."""

from __future__ import annotations

import torch
from torch import Tensor


class EvenRows:
    """Keeps [R, C] tensors of one number of rows, all with the same choice of them, within a number of bytes.

    How many tensors will come is not known. So all rows are kept at first; as soon as they take more than there is room
    for, every other one goes, of what is kept and of what comes.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.kept: list[Tensor] = []
        self._rows: Tensor | None = None

    def add(self, value: Tensor) -> int:
        """Keeps a tensor, and says which one it is. Raises ValueError for one of another number of rows."""
        if self._rows is None:
            self._rows, self._all = torch.arange(value.shape[0]), value.shape[0]
        if value.shape[0] != self._all:
            raise ValueError(f"calls differ in size: {self._all} rows, then {value.shape[0]}: record runs of one size")
        self.kept.append(value[self._rows.to(value.device)].float().cpu())
        while len(self._rows) > 1 and sum(one.numel() * 4 for one in self.kept) > self.most_bytes:
            self._rows = self._rows[::2]
            self.kept = [one[::2].clone() for one in self.kept]
        return len(self.kept) - 1
