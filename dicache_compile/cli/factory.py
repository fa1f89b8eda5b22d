"""`module:factory`: a function of the user's that gives a model and what it is called with."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .answer import Mistake, quiet, users

FORMS = """expected one of
  (model, kwargs)             a call of a model is model(**kwargs)
  (model, args, kwargs)       a call of a model is model(*args, **kwargs)
  (pipe, kwargs)              a diffusers pipeline, and what it is called with
  (model or pipe, generate)   generate(seed) samples one result: a tensor, arrays or pictures"""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a model."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """What samples a result, again and again."""

    subject: Any  # a model, or a diffusers pipeline
    generate: Callable[..., Any]  # of a seed; `steps`, too, where it takes them


def is_factory(target: str) -> bool:
    return ":" in target and not Path(target).exists()


def made(target: str) -> Call | Workload:
    """What `module:factory` or `file.py:factory` gives. Raises Mistake that says what was expected."""
    where, _, name = target.rpartition(":")
    module = _module(where)
    factory: Any = module
    for part in name.split("."):
        if not hasattr(factory, part):
            near = difflib.get_close_matches(part, [one for one in dir(factory) if not one.startswith("_")], n=1)
            raise Mistake(f"{where} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        factory = getattr(factory, part)
    if not callable(factory):
        raise Mistake(f"{target} is a {type(factory).__name__}: expected a function without arguments")
    with users(f"{target}()"):
        given = factory()
    return read(target, given)


def read(target: str, given: Any) -> Call | Workload:
    """What a factory gave, by its form. Raises Mistake."""
    match given:
        case (nn.Module() as model, Mapping() as kwargs):
            return Call(model, (), kwargs)
        case (nn.Module() as model, tuple() | list() as args, Mapping() as kwargs):
            return Call(model, tuple(args), kwargs)
        case (subject, Mapping() as kwargs) if _is_pipeline(subject):
            return Workload(subject, _generate(subject, kwargs))
        case (subject, generate) if callable(generate) and (isinstance(subject, nn.Module) or _is_pipeline(subject)):
            return Workload(subject, generate)
    raise Mistake(f"{target}() gave {_form(given)}: {FORMS}")


def with_steps(workload: Workload, steps: int | None) -> Callable[[int], Any]:
    """`generate`, of a seed alone. Raises Mistake where it is to be told a number of steps and takes none."""
    if steps is None:
        return workload.generate
    parameters = inspect.signature(workload.generate).parameters
    name = next((name for name in ("steps", "num_inference_steps") if name in parameters), None)
    if name is None:
        raise Mistake("--steps: the factory's generate takes none: write it as generate(seed, steps=30)")
    return lambda seed: workload.generate(seed, **{name: steps})


def _module(where: str) -> Any:
    """A module by its dotted name, also in the working directory, or a file."""
    path = Path(where)
    folder = str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem if path.suffix == ".py" else where
    if path.suffix == ".py" and not path.is_file():
        raise Mistake(f"there is no file {where}")
    if not all(part.isidentifier() for part in name.split(".")):
        raise Mistake(f"{where!r} is no module: expected module:factory, as in mypackage.models:make")
    try:
        with users(f"importing {where}"), quiet():
            return importlib.import_module(name)
    except Mistake as mistake:
        missing = mistake.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name in _parents(name):
            raise Mistake(f"there is no module {missing.name!r} here or on PYTHONPATH") from missing
        raise


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[: n + 1]) for n in range(len(parts))}


def _is_pipeline(value: Any) -> bool:
    return isinstance(getattr(value, "components", None), Mapping) and callable(value)


def _generate(pipe: Any, kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    def generate(seed: int, steps: int | None = None) -> Any:
        told = {} if steps is None else {"num_inference_steps": steps}
        # Drawn on the CPU, as the same seed is the same noise there on every machine.
        return pipe(**{"output_type": "pt", **kwargs, **told, "generator": torch.Generator().manual_seed(seed)})

    return generate


def _form(given: Any) -> str:
    if isinstance(given, (tuple, list)):
        return f"({', '.join(type(one).__name__ for one in given)})"
    return type(given).__name__
