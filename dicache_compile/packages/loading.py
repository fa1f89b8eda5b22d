"""Runs a package: no Dynamo, no code of the model."""

from __future__ import annotations

import inspect
import operator
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..artifacts import machine
from ..calls.clock import CountingClock, InputClock
from ..calls.cut_check import CutCheck, Held
from ..calls.session import SessionFinder
from ..calls.settings import guided_by_slot
from ..calls.sizes import Sizes
from ..calls.step import CompiledStep, Places
from ..config import DiCacheConfig
from ..engines.base import CallsEngine, lower_program
from ..explanation import Explanation
from . import aot, archive
from .form import Form, fill, tensors_of
from .saving import KIND, VERSION
from .taken import register
from .text import Text, dtype_of, dtype_text, read_pieces, read_program

Weights = nn.Module | Mapping[str, Tensor]
_KEEPS = "a package keeps its tensors: copy into them, or give others to load_package as weights="


def load_package(
    path: str | os.PathLike[str], weights: Weights | None = None, *, check_weights: bool = True
) -> Package:
    """The model in a file of `save_package`, to be called as the model was.

    `weights`: a model or a state dict whose tensors are used in place of those in the file, as they are and without a
    copy. Where the file has none they are needed. Those in the file are mapped from it. All pieces use the same ones.

    `check_weights`: whether those in the file are held against their checksum, for which all of them are read once.

    The file has native code, and Python's pickle: load only what you trust, as with any other program.

    Raises ValueError, before anything in it is run, for a file that is no package, is not whole, or is of another
    PyTorch or machine, and for weights that do not fit; TypeError for what has no weights; and what a file system
    raises.
    """
    place = Path(os.path.realpath(path))
    text, pickled = archive.read(place)
    with archive.refusing(place):
        _check(text, place)
    found = _weights(text, place, weights, check_weights)
    return Package(text, *_unpickled(pickled, place), found, str(place))


class Package(nn.Module):
    """A model from a package. Streams, generations and what tells of them work as with a compiled model: `summary`,
    `explain`, `report`, `reset`, `configure`. Its weights are its buffers, by the names that they have in the model.
    """

    def __init__(
        self, text: Text, config: DiCacheConfig, explanation: Explanation, weights: Mapping[str, Tensor], path: str
    ) -> None:
        super().__init__()
        for name, weight in weights.items():
            register(self, name, weight)
        self._signature = inspect.Signature([_parameter(one) for one in text["parameters"]])
        self._arguments: dict[str, Form] = {one["name"]: one["form"] for one in text["parameters"]}
        self._result: Form = text["result"]
        self._holders = [module._buffers for module in self.modules() if module._buffers]
        self._buffers_once = list(chain.from_iterable(map(dict.values, self._holders)))
        self._held = [weights[one["weight"]] if "weight" in one else None for one in text["inputs"]]
        self._wanted = [_Wanted.of(place, one) for place, one in enumerate(text["inputs"]) if "argument" in one]
        self._step = _step(text, config, explanation, path)
        self._device = text["state"][0]["device"].partition(":")[0]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises TypeError or ValueError for a call of another form than the one that the package was made of, and
        TypeError where another tensor took the place of a weight.
        """
        if not all(map(operator.is_, chain.from_iterable(map(dict.values, self._holders)), self._buffers_once)):
            raise TypeError(f"another tensor took the place of a weight, and {_KEEPS}")
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        tensors: list[Tensor] = []
        for name, form in self._arguments.items():
            tensors += tensors_of(form, bound.arguments[name], name)
        inputs: list[Any] = list(self._held)
        # What autocast cast as the package was made is in it.
        with torch.no_grad(), torch.autocast(self._device, enabled=False):
            for one in self._wanted:
                inputs[one.place] = one.taken(tensors[one.argument])
            return fill(self._result, self._step.run(inputs))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copies other weights over its own. Raises TypeError where it is told to use the given tensors themselves."""
        if assign:
            raise TypeError(f"assign: {_KEEPS}")
        return super().load_state_dict(state_dict, strict)

    def _apply(self, fn: Any, recurse: bool = True) -> NoReturn:
        raise TypeError("a package stays on its device and of its dtype: make another one with save_package")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a package is not copied or pickled: load it again with load_package")


def package_of(model: nn.Module) -> Package | None:
    """The package that a model is, or whose forward it has."""
    for one in (model, getattr(model.forward, "__self__", None)):
        if isinstance(one, Package):
            return one
    return None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A tensor that the caller passes."""

    name: str
    place: int  # among the graph's inputs
    argument: int  # among the call's tensors
    like: Tensor  # of the kind that it has to be, and no memory

    @classmethod
    def of(cls, place: int, text: Text) -> _Wanted:
        form = archive.TensorForm.told(text)
        with FakeTensorMode():
            like = torch.empty_strided(form.shape, form.stride, dtype=dtype_of(form.dtype), device=form.device)
        return cls(text["name"], place, text["argument"], like)

    def taken(self, given: Tensor) -> Tensor:
        """The tensor, lying in memory as the example did."""
        like = self.like
        if (given.dtype, given.shape, given.device) != (like.dtype, like.shape, like.device):
            kinds = (f"{dtype_text(one.dtype)} of {list(one.shape)} on {one.device}" for one in (like, given))
            raise ValueError("{}: expected {}, got {}: make a package for this".format(self.name, *kinds))
        if given.stride() == like.stride():
            return given
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device).copy_(given)


_PARTS = ("parameters", "result", "inputs", "weights", "registers", "state", "pieces", "ops", "reused", "outputs")


def _check(text: Any, path: Path) -> None:
    if not isinstance(text, dict) or text.get("kind") != KIND:
        raise ValueError(f"{path}: expected a file that dicache_compile.save_package wrote")
    if text["version"] != VERSION:
        raise ValueError(f"{path}: expected version {VERSION}, found {text['version']!r}: make it anew")
    if missing := [part for part in _PARTS if part not in text]:
        raise KeyError(missing[0])
    here = {"torch": torch.__version__, "machine": machine(torch.device(text["state"][0]["device"]).type)}
    for name, own in here.items():
        if text[name] != own:
            raise ValueError(f"{path} is of {name} {text[name]!r}, and this is {own!r}: make one here")


def _weights(text: Text, path: Path, given: Weights | None, check: bool) -> dict[str, Tensor]:
    """The weights by name: those given where the model keeps them, and otherwise those in the file."""
    wanted = {one["weight"]: one for one in text["inputs"] if "weight" in one}
    if isinstance(given, nn.Module):
        given = dict((*given.named_buffers(remove_duplicate=False), *given.named_parameters(remove_duplicate=False)))
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"weights: expected a model or a state dict, got {type(given).__name__}")
    found: dict[str, Any] = {}
    if given is not None:
        found = {name: given.get(name) for name, one in wanted.items() if one["kept"]}
    elif missing := [name for name in wanted if name not in text["weights"]]:
        raise ValueError(f"{path} has no weights ({missing[0]}, say): give load_package the model or its state dict")
    for name, tensor in found.items():
        has = archive.TensorForm.of(tensor) if isinstance(tensor, Tensor) else None
        if has != (needs := archive.TensorForm.told(wanted[name])):
            raise ValueError(f"weights: {name} has to be {needs}, and is {has or 'not there'}")
    own = {name: one for name, one in text["weights"].items() if name not in found}
    if own and check:
        archive.check_weights(path)
    read = archive.read_weights(path, own)
    return {name: found[name].detach() if name in found else read[name].to(wanted[name]["device"]) for name in wanted}


def _step(text: Text, config: DiCacheConfig, explanation: Explanation, path: str) -> CompiledStep:
    program = read_program(text)
    held = [Held(name, x, tuple(residuals)) for name, x, residuals in text["checked"]]
    pieces = read_pieces(text, cache(partial(aot.opened, path)))
    engine = CallsEngine(lower_program(program, lambda piece: pieces[piece.name]))
    return CompiledStep(
        config=config,
        find_session=SessionFinder(config, explanation, engine),
        engine=engine,
        slots=program.slots,
        sizes=Sizes({slot.name: slot.shape for slot in program.slots}, {}, {}),
        places=Places(
            conditions=tuple(text["conditions"]),
            names=tuple(text["condition_names"]),
            arguments=frozenset(text["arguments"]),
            latents=text["latents"],
            weights=tuple(text["marks"]),
        ),
        clock=InputClock(text["timestep"]) if text["timestep"] is not None else CountingClock(),
        function=None,
        work=0,
        guided=guided_by_slot(config),
        told_ahead=program.reused is not None,
        check=CutCheck(program, held) if held else None,
        stays=None,
    )


def _unpickled(pickled: bytes, path: Path) -> tuple[DiCacheConfig, Explanation]:
    try:
        config, explanation = pickle.loads(pickled)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}: its config has a gate or an estimator that is not there: {error}") from error
    return config, explanation


def _parameter(text: Text) -> inspect.Parameter:
    default = fill(text["default"], ()) if "default" in text else inspect.Parameter.empty
    return inspect.Parameter(text["name"], getattr(inspect.Parameter, text["kind"]), default=default)
