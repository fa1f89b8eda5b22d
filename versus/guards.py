"""Any system with its guards checked in the first step of a generation only, as docs/host-cost.md has it.

Dynamo checks before each call that nothing of the model has changed. Where the host is what takes the time, a user may
have it check once a generation. That spares every system something, so all are given it alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .system import Installed


def once(installed: Installed) -> Installed:
    """The same system; all that it compiles must be compiled before."""

    def call(stream: str, step: int, inputs: dict[str, Any]) -> Any:
        with torch.compiler.set_stance("default", skip_guard_eval_unsafe=step > 0):
            return installed.call(stream, step, inputs)

    return replace(installed, call=call)
