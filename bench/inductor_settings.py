"""Reads off what a library sets for the whole process, so that it can be given to one compilation alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def what_it_sets(change: Callable[[], None]) -> dict[str, Any]:
    """The settings of Inductor that a function changes, which are as they were afterwards."""
    from torch._inductor import config

    limits = ("recompile_limit", "accumulated_recompile_limit")  # of Dynamo; ours are high enough for it
    with torch._dynamo.config.patch({name: getattr(torch._dynamo.config, name) for name in limits}):
        before = config.get_config_copy()
        change()
        after = config.get_config_copy()
    changed = {name: value for name, value in after.items() if value != before[name]}
    for name in changed:
        setattr(config, name, before[name])
    return changed
