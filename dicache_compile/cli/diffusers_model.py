"""A diffusers model from its class or its config alone: without weights, which the cut does not depend on."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from .answer import Mistake, quiet, users
from .factory import Call
from .inputs import inputs
from .settings import assigned

_PARTS = ("transformer", "transformer_2")  # of a pipeline's folder, the first that is there


def diffusers_call(target: str, changes: Sequence[str], shapes: Sequence[str], dtype: str, real: bool) -> Call:
    """One call of a diffusers model, of a class's name or of a folder with a config.

    `changes` are fields of the model's config, `shapes` of inputs. `real`: with random weights; else of fake tensors,
    which have no values and need no memory. Raises Mistake.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise Mistake(f"--dtype {dtype}: expected a floating dtype of torch, such as bfloat16 or float32")
    fields = dict(assigned("--model", text) for text in changes)
    with nullcontext() if real else FakeTensorMode(allow_non_fake_inputs=True):
        with quiet():
            diffusers = _diffusers()
            config = of_folder(Path(target)) if _is_folder(target) else {"_class_name": target}
            model = _built(_class(diffusers, str(config.get("_class_name"))), config, fields, kind)
        arguments = inputs(model, shapes, kind)
    more = {"return_dict": False} if "return_dict" in inspect.signature(model.forward).parameters else {}
    return Call(model.eval().requires_grad_(False), (), {**arguments, **more})


def _is_folder(target: str) -> bool:
    return Path(target).exists() or "/" in target or target.startswith(".")


def of_folder(folder: Path) -> dict[str, Any]:
    """The config of a model's folder, or of the denoiser of a pipeline's. Raises Mistake."""
    if not folder.exists():
        raise Mistake(f"there is no folder {folder}; models of the hub have to be downloaded first")
    if folder.name == "config.json":
        folder = folder.parent
    files = [folder / "config.json", *(folder / part / "config.json" for part in _PARTS)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise Mistake(f"{folder} has no config.json, nor has a folder transformer in it: expected a diffusers model")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise Mistake(f"{file} is no JSON: {error}") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise Mistake(f"{file} names no class of diffusers (_class_name)")
    return {name: value for name, value in config.items() if name != "quantization_config"}


def _class(diffusers: Any, name: str) -> Any:
    """A class of models. Raises Mistake, with the nearest name."""
    models = [one for one in dir(diffusers) if one.endswith(("Model", "Transformer2D", "Transformer3D"))]
    found = getattr(diffusers, name, None)
    if found is None:
        near = difflib.get_close_matches(name, models, n=1, cutoff=0.3)
        raise Mistake(
            f"diffusers {diffusers.__version__} has no class {name!r}" + (f"; did you mean {near[0]}?" if near else "")
        )
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise Mistake(f"{name} is no model: expected a class such as FluxTransformer2DModel, or a model's folder")
    return found


def _built(kind: Any, config: Mapping[str, Any], fields: Mapping[str, Any], dtype: torch.dtype) -> Any:
    known = inspect.signature(kind.__init__).parameters
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
            raise Mistake(f"--model {name}: {kind.__name__} has no such field; the nearest is {near[0]!r}")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as from_pretrained does, which keeps some weights in float32 likewise
    try:
        with users(f"making {kind.__name__}"):
            model = kind.from_config({**config, **fields})
    finally:
        torch.set_default_dtype(before)
    keep = set(kind._keep_in_fp32_modules or ())
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if keep & {*path.split("."), name} and weight.is_floating_point():
                setattr(module, name, torch.nn.Parameter(weight.float()))
    return model


def _diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise Mistake("a class or a folder of diffusers needs diffusers: pip install diffusers") from error
