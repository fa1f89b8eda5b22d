"""The CUDA driver by NVIDIA's own bindings, which the CUDA builds of torch (2.11 and later) bring along."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from ...errors import CaptureError

_BINDINGS = 13  # major version, the first whose calls are as they are written here
_DRIVER = 12080  # CUDA 12.8 brought the second body, ELSE, of a conditional node


class CudaError(CaptureError):
    """A call of the CUDA driver, or of its compiler, failed."""


def why_no_conditional() -> str | None:
    """The reason why this process cannot have conditional nodes in a CUDA graph, or None. Needs a CUDA context."""
    try:
        found = version("cuda-bindings")
    except PackageNotFoundError:
        return f"the package cuda-bindings is not installed: pip install 'cuda-bindings>={_BINDINGS}'"
    if int(found.partition(".")[0]) < _BINDINGS:
        return f"cuda-bindings {found} is installed, and version {_BINDINGS} or later is needed"
    known = checked(driver().cuDriverGetVersion())
    if known < _DRIVER:
        return f"the CUDA driver is for CUDA {_text(known)}, and conditional nodes with an ELSE need {_text(_DRIVER)}"
    return None


def driver() -> ModuleType:
    return importlib.import_module("cuda.bindings.driver")


def compiler() -> ModuleType:
    return importlib.import_module("cuda.bindings.nvrtc")


def checked(result: tuple[Any, ...]) -> Any:
    """What a call of the bindings gave besides its status: nothing, one value, or a tuple. Raises CudaError."""
    status, *values = result
    if int(status):
        raise CudaError(f"{getattr(status, 'name', status)} ({type(status).__name__})")
    return values[0] if len(values) == 1 else tuple(values)


def _text(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
