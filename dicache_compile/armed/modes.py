"""What compiled code depends on besides a model and its arguments: the modes of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._dynamo.guards import GlobalStateGuard
from torch._dynamo import eval_frame


class Modes:
    """Those in force where it was made: gradients, autocast, determinism, and whoever else takes part in a call."""

    __slots__ = ("_guard", "_others")

    def __init__(self) -> None:
        self._guard, self._others = GlobalStateGuard(), _others()

    def hold(self) -> bool:
        """Whether they are in force here, too."""
        return bool(self._guard.check()) and _others() == self._others


def _others() -> tuple[Any, ...]:
    return (
        torch.is_inference_mode_enabled(),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        getattr(eval_frame, "_stance", None),
    )
