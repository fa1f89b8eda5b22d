"""Writes a model, its cache and its weights to one file that needs neither Dynamo nor the model's Python code."""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Container, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from ..artifacts import machine
from ..backend import checked_of, lowering_of, places_of
from ..calibration.recording import fingerprint
from ..calls.settings import Told
from ..calls.sizes import read_sizes
from ..config import DiCacheConfig
from ..errors import ExportError, StepError
from ..explain import of_cut
from ..files import checked_path
from ..lowering import Lowering
from . import archive
from .aot import Compiling
from .form import Form, form_of
from .taken import Source, Taken, take
from .text import Text, program_text

KIND, VERSION = "dicache_compile package", 1


def save_package(
    pipe_or_model: object, path: str | os.PathLike[str], /, *args: Any, weights: bool = True, **kwargs: Any
) -> None:
    """Compiles a model ahead of time, with its cache, to one file. `load_package` reads it.

    `args` and `kwargs` are those of one call, as the model will be called: the package runs calls of these shapes, and
    with these numbers. Of a pipeline with one compiled model they are the pipeline's, which runs until it calls its
    model. The config is the one that the model is compiled with, else the default one. The model does not run.

    With `weights=False` the file has none of what is in the model's `state_dict`: it is given to `load_package`.

    Raises ExportError, which says why, for a model that cannot be in a package; UnsupportedGraphError for one that
    cannot be cut; TypeError or ValueError for what is no model, no call of it or no path that ends in .pt2; and what a
    file system raises.
    """
    target = checked_path(path, "model.pt2")
    if target.suffix != ".pt2":
        raise ValueError(f"path: expected a name that ends in .pt2, got {target.name}")
    taken = take(pipe_or_model, args, kwargs)
    config = _pickled(taken)  # first, as compiling takes minutes
    compiling = Compiling()
    about = _about(taken, _lowering(taken, compiling))
    left_out = set() if weights else set(taken.model.state_dict())
    packed = {name: weight for name, weight in taken.weights.items() if name not in left_out}
    archive.write(target, compiling.files, about, config, packed)


def _lowering(taken: Taken, compiling: Compiling) -> Lowering:
    whole = lowering_of(taken.graph_module, taken.examples, taken.found, taken.config, {})
    return replace(whole, settings={}, compiler=compiling)


def _about(taken: Taken, lower: Lowering) -> Text:
    """All that is told of a package, but for where its weights are."""
    program, places = taken.found.program, places_of(taken.found)
    pieces = {piece.name: piece for piece in (*program.pieces(), *filter(None, [program.reused]))}
    with torch.no_grad():
        callees = {name: lower(piece) for name, piece in pieces.items()}
    shapes = read_sizes(taken.found.plan.graph_module.graph, program.slots).fixed
    assert shapes is not None  # `take` refuses others
    timestep, kept = taken.found.inputs.timestep, taken.model.state_dict().keys()
    return {
        "kind": KIND,
        "version": VERSION,
        "torch": torch.__version__,
        "machine": machine(program.slots[0].device.type),
        "model": fingerprint(taken.model),
        "parameters": [_parameter(one, taken.arguments) for one in taken.parameters],
        "result": taken.result,
        "inputs": [_input(*one, kept) for one in zip(taken.sources, taken.examples, strict=True)],
        "timestep": taken.found.placeholders.index(timestep) if timestep is not None else None,
        "conditions": places.conditions,
        "condition_names": places.names,
        "arguments": sorted(places.arguments),
        "latents": places.latents,
        "marks": places.weights,
        "checked": [[one.name, one.x, one.residuals] for one in checked_of(taken.found, taken.config)],
        "told": _told(taken.config),
        **program_text(program, callees, shapes),
    }


def _parameter(parameter: inspect.Parameter, arguments: Mapping[str, Form]) -> Text:
    text: Text = {"name": parameter.name, "kind": parameter.kind.name, "form": arguments[parameter.name]}
    if parameter.default is not parameter.empty:
        try:
            return {**text, "default": form_of(parameter.default, lambda _: 0)}
        except TypeError:  # of a kind that no package takes: it has to be given
            pass
    return text


def _input(source: Source, example: torch.Tensor, kept: Container[str]) -> Text:
    """`kept`: the names in the model's state dict."""
    if source.argument is not None:
        return {"name": source.name, "argument": source.argument, **asdict(archive.TensorForm.of(example))}
    return {"weight": source.name, "kept": source.name in kept, **asdict(archive.TensorForm.of(example))}


def _told(config: DiCacheConfig) -> dict[str, list[float]] | None:
    """What the host writes at a generation's start, by slot; None where that needs the number of steps."""
    try:
        settings = Told(config).settings(config.num_steps)
    except StepError:
        return None
    return {slot: list(values) for slot, values in settings.values.items()}


def _pickled(taken: Taken) -> bytes:
    """The config, and what `explain` tells."""
    try:
        return pickle.dumps((taken.config, of_cut(taken.found)))
    except Exception as error:  # whatever a plug-in's class raises
        raise ExportError(
            f"the config cannot be pickled: {error}", advice="define its gates and estimators in a module"
        ) from error
