"""What a page is made of: what is known of each model, and of the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..calls.session import Session
from ..config import DiCacheConfig
from ..explain import explain
from ..explanation import Explanation
from ..subject import Subject, subjects, why_nothing_ran
from ..summary import Summary, summary
from ..write.record import ROW
from ..write.record import names as columns_of
from .tracks import Past, past


@dataclass(frozen=True, slots=True)
class Kept:
    """One slot of a stream's state."""

    name: str
    what: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What streams keep, without what engines captured."""

    slots: tuple[Kept, ...]  # of the stream that was called last
    streams: tuple[tuple[str, int], ...]  # by name, with bytes; the one that was called last comes last
    bytes: int  # of all; what streams share is counted once


@dataclass(frozen=True, slots=True)
class Section:
    """One model."""

    name: str  # in the pipeline; "" of a model by itself
    kind: str  # its class
    cut: Explanation | None  # None: nothing was compiled yet
    did: Summary
    past: tuple[Past, ...]  # the newest first
    memory: Memory
    config: DiCacheConfig | None
    device: str  # "cpu", "cuda:0"
    device_name: str
    why_nothing: str | None  # why nothing ran; None where something did

    @property
    def title(self) -> str:
        return f"{self.name}: {self.kind}" if self.name else self.kind

    @property
    def on_host(self) -> bool:
        """Whether a call returns when its work is done, so that the host's clock tells how long it took."""
        return self.device == "cpu"


def sections(given: object) -> tuple[Section, ...]:
    """The models that are meant. Waits for the device. Raises TypeError for what is neither model nor pipeline."""
    found = subjects(given)
    components = {"": given} if isinstance(given, nn.Module) else given.components  # type: ignore[attr-defined]
    return tuple(_section(one, components[one.name]) for one in found)


def versions() -> dict[str, str]:
    """By name; of diffusers only where it is in use."""
    found = {"dicache_compile": _version("dicache-compile"), "torch": torch.__version__}
    if "diffusers" in sys.modules:
        found["diffusers"] = _version("diffusers")
    if torch.version.cuda is not None:
        found["CUDA"] = torch.version.cuda
    return {**found, "Python": platform.python_version(), "system": platform.platform()}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _section(one: Subject, model: nn.Module) -> Section:
    """`model`: as it was given, which what torch.compile returned tells more of than the original does."""
    session = one.sessions[-1] if one.sessions else None
    known = session is not None or one.refused is not None or bool(one.others)
    told = explain(model) if known else None
    did = summary(model)
    device = _device(one, session)
    return Section(
        name=one.name,
        kind=type(one.model).__name__,
        cut=told,
        did=did,
        past=tuple(
            past(number, generation, told, device.type == "cpu")
            for number, generation in reversed(list(enumerate(did.generations)))
        ),
        memory=_memory(session),
        config=one.config,
        device=str(device),
        device_name=_device_name(device),
        why_nothing=why_nothing_ran(one) if not did.generations else None,
    )


def _device(one: Subject, session: Session | None) -> torch.device:
    """Where the steps ran; of a model that was not called, where its weights are."""
    records = [history.tensors["log"] for history in (session.history.values() if session else ()) if history.tensors]
    tensors: list[Tensor] = records or list(one.model.parameters()) or list(one.model.buffers())
    return tensors[-1].device if tensors else torch.device("cpu")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()}, {threads} thread{'' if threads == 1 else 's'} of PyTorch"


def _memory(session: Session | None) -> Memory:
    if session is None or not session.streams:
        return Memory((), (), 0)
    owners = _owners(session)
    newest = next(reversed(session.streams.values()))
    kept = tuple(_kept(name, tensor, owners) for name, tensor in newest.tensors.items())
    streams = tuple((name, _bytes(list(state.tensors.values()))) for name, state in session.streams.items())
    return Memory(kept, streams, _bytes([t for state in session.streams.values() for t in state.tensors.values()]))


def _owners(session: Session) -> dict[str, str]:
    """Whom the slots of a name are kept for."""
    found: dict[str, str] = {}
    for rule in session.config.rules_in_force():
        for what, one in (("gate", rule.gate), ("estimator", rule.estimator)):
            found |= {spec.name: f"for the {what}, {type(one).__name__}" for spec in (one.slots() if one else ())}
    return found


def _kept(name: str, tensor: Tensor, owners: Mapping[str, str]) -> Kept:
    what = owners.get(name.partition(".")[0], "control")
    if name == "log":
        of_rows = ROW in columns_of(tensor.shape[1])[0]
        what = f"the record of the last {tensor.shape[0]} steps{' of single rows' if of_rows else ''}"
    return Kept(name, what, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), _bytes([tensor]))


def _bytes(tensors: list[Tensor]) -> int:
    """Those of one storage once."""
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
