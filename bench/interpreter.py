"""Triton's interpreter, which runs kernels on CPU tensors, put right where it does not compute what a GPU does."""

from __future__ import annotations

import os
from typing import Any

import torch


def prepare() -> None:
    """Puts the interpreter of Triton 3.6 right.

    It rounds to bfloat16 towards zero and to float8 without a carry, and takes float8's NaN for a number. And it asks
    for an index in a way that NumPy 2.4 refuses.

    RuntimeError: TRITON_INTERPRET=1 was not set before Triton was first imported.
    """
    from triton import knobs
    from triton.runtime import interpreter

    if not knobs.runtime.interpret or os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET=1 must be set before Triton is first imported")
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch
    interpreter._convert_float = _convert


def _convert(bits: Any, source: Any, target: Any, _rounding: object) -> Any:
    """PyTorch's conversion, to the nearest and ties to even; arrays of bits, as the interpreter has them."""
    read = torch.from_numpy(bits.copy().view(f"int{source.primitive_bitwidth}")).view(_torch(source))
    return read.to(_torch(target)).view(getattr(torch, f"int{target.primitive_bitwidth}")).numpy()


def _torch(dtype: Any) -> torch.dtype:
    names = {
        "fp32": "float32",
        "fp16": "float16",
        "bf16": "bfloat16",
        "fp8e4nv": "float8_e4m3fn",
        "fp8e5": "float8_e5m2",
    }
    found = getattr(torch, names[str(dtype)])
    assert isinstance(found, torch.dtype)
    return found
