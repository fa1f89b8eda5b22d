"""Which ranks decide as one: what a config says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from .plan import Group

# What each rank has of a picture, in words.
HELD = {"parts": "a part of the tokens", "copies": "all of the tokens", "branches": "another call of a step"}
_WHICH = "a ProcessGroup, a DeviceMesh of one dimension, a Ranks, 'auto' or None"


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks that make one picture together, for `DiCacheConfig(agree=...)`, and what each of them has of it.

    - `hold="parts"`: some of its tokens, as in context parallelism. The error is that of all tokens.
    - `hold="copies"`: all of it, as in tensor parallelism.
    - `hold="branches"`: another call of the same step, as where one rank runs the conditional call of guidance and
      another one the unconditional. The group's first rank decides and the others do as it does.

    `group` is a ProcessGroup or a DeviceMesh of one dimension. Raises TypeError or ValueError for anything else.
    """

    group: Any
    hold: Literal["parts", "copies", "branches"] = "parts"

    def __post_init__(self) -> None:
        if self.hold not in HELD:
            raise ValueError(f"Ranks: expected hold to be one of {', '.join(map(repr, HELD))}, got {self.hold!r}")
        _process_group(self.group, "Ranks")


def check_agree(agree: object) -> None:
    """Raises TypeError or ValueError for what `agree` may not be."""
    if agree is None or agree == "auto" or isinstance(agree, Ranks):
        return
    _process_group(agree, "agree")


def group_of(agree: Any) -> Group | Literal["auto"] | None:
    """The group that decides as one; None: each rank decides for itself. Raises ValueError outside of it."""
    if agree is None or isinstance(agree, str):
        return "auto" if agree else None
    ranks = agree if isinstance(agree, Ranks) else Ranks(agree)
    group = _process_group(ranks.group, "agree")
    if dist.get_rank(group) < 0:
        raise ValueError(f"agree: this process, rank {dist.get_rank()}, is not of the group that it is given")
    return Group(group.group_name, group.size(), ranks.hold) if group.size() > 1 else None


def backend_of(group: Group, device: torch.device) -> str:
    """What runs a group's collectives on a device: "nccl", "gloo"."""
    resolve = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009 - which it does not export
    config = dict(part.split(":", 1) for part in dist.get_backend_config(resolve(group.name)).split(",") if ":" in part)
    return config.get(device.type, "no backend")


def _process_group(given: object, field: str) -> Any:
    if isinstance(given, str):
        more = " Ranks that share no picture, as in data parallelism, must not agree." if given == "world" else ""
        need = "give the group of the ranks that make one picture together: torch.distributed.group.WORLD if all do"
        raise ValueError(f"{field}: {given!r} is a guess which ranks these are; {need}, or mesh['cp'].{more}")
    if isinstance(given, DeviceMesh):
        if given.ndim != 1:
            names = given.mesh_dim_names
            one = f"mesh[{names[-1]!r}]" if names else "one dimension of it"
            raise ValueError(
                f"{field}: expected a mesh of one dimension, got one of {given.ndim} ({names}): give {one}"
            )
        return given.get_group()
    if not dist.is_available() or not isinstance(given, dist.ProcessGroup):
        raise TypeError(f"{field}: expected {_WHICH}, got {given!r}")
    return given
