"""What was compiled for a model, as one file that the next process or machine starts from.

A file is a line of JSON that says what it is of, and then what PyTorch's caches hold. Two machines are of one kind
where the releases of Python and PyTorch and the device agree.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .calibration.recording import fingerprint
from .errors import CacheWarning
from .files import checked_path, write_whole
from .lowering import kept
from .subject import Subject, subjects, why_nothing_ran

VERSION = 1
_KIND = "dicache_compile artifacts"


def save(pipe_or_model: object, path: str | os.PathLike[str]) -> None:
    """Writes what was compiled in this process for a model, or the models of a pipeline, to one file.

    Call it after a generation, when all that will be needed is compiled. `load` reads it.

    Raises ValueError where nothing was compiled or PyTorch's caches are off, TypeError for what is no compiled model,
    and what a file system raises. Warns (CacheWarning) where PyTorch could not keep a part, which compiles anew then.
    """
    target, found = checked_path(path, "model.dicache"), subjects(pipe_or_model)
    for one in found:
        if not one.sessions:
            raise ValueError(f"{why_nothing_ran(one)}: run a generation first")
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        raise ValueError(
            "PyTorch kept nothing of what it compiled: its caches are off (force_disable_caches), or the config has "
            "lowering='eager', which compiles nothing"
        )
    if lost := kept.not_kept():
        text = f"PyTorch cannot keep {lost} of the parts that it compiled: they are compiled again where this is loaded"
        warnings.warn(text, CacheWarning, stacklevel=2)
    payload, _ = artifacts
    header = {"kind": _KIND, "version": VERSION, **_here(), "models": _models(found), "sha256": _digest(payload)}
    write_whole(target, json.dumps(header).encode() + b"\n" + payload)


def load(path: str | os.PathLike[str], pipe_or_model: object = None) -> None:
    """Reads what `save` wrote, so that the models in it need no compiling. Call it before the first generation.

    With `pipe_or_model` it is checked that the file is of that model. PyTorch unpickles what is in the file, and runs
    the code in it: load only what you trust, as with any other program.

    Raises ValueError, before anything is read into PyTorch, for a file that is none of `save`, is not whole, or is of
    another PyTorch, device or model; and what a file system raises.
    """
    line, _, payload = Path(path).read_bytes().partition(b"\n")
    header = _header(line, path)
    if header.get("version") != VERSION:
        raise ValueError(f"{path}: expected version {VERSION}, found {header.get('version')!r}: save it anew")
    if header.get("sha256") != _digest(payload):
        raise ValueError(f"{path} is not whole, or was changed: save it anew")
    for name, here in _here().items():
        if header.get(name) != here:
            raise ValueError(f"{path} is of {name} {header.get(name)!r}, and this is {here!r}: save one here")
    if pipe_or_model is not None:
        wanted = [fingerprint(model) for model in _modules(pipe_or_model)]
        if not set(wanted) & set(header.get("models", ())):
            raise ValueError(f"{path} is of {', '.join(header.get('models', ()))}, and this is {', '.join(wanted)}")
    if torch.compiler.load_cache_artifacts(payload) is None:
        raise ValueError(f"{path}: PyTorch cannot read what is in it: save it anew")


def _header(line: bytes, path: object) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("kind") != _KIND:
        raise ValueError(f"{path}: expected a file that dicache_compile.save wrote")
    return header


def _here() -> dict[str, str]:
    """What the code in a file depends on."""
    device = machine("cuda" if torch.cuda.is_available() else "cpu")
    return {"torch": torch.__version__, "python": platform.python_version(), "device": device}


def machine(kind: str) -> str:
    """What code for that kind of device depends on: "x86_64 AVX512"."""
    if kind == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _models(found: Sequence[Subject]) -> list[str]:
    return [fingerprint(one.model) for one in found]


def _modules(given: object) -> list[nn.Module]:
    if isinstance(given, nn.Module):
        return [given]
    components = getattr(given, "components", None)
    if not isinstance(components, Mapping):
        raise TypeError(f"expected a torch.nn.Module or a pipeline, got {type(given).__name__}")
    return [part for part in components.values() if isinstance(part, nn.Module)]


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
