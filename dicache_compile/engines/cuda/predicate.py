"""The kernel that tells a conditional node which body to run: one thread, one number."""

from __future__ import annotations

import functools
from typing import Any

from .driver import CudaError, checked, compiler, driver

NAME = b"dicache_choose"
# No header: the declaration is all that is needed, and the driver resolves the symbol when it loads the code.
SOURCE = b"""
typedef __device_builtin__ unsigned long long cudaGraphConditionalHandle;
extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(cudaGraphConditionalHandle, unsigned int);
extern "C" __global__ void dicache_choose(cudaGraphConditionalHandle branch, const bool* reuse) {
    cudaGraphSetConditional(branch, *reuse ? 0u : 1u);
}
"""


def compile_kernel(capability: tuple[int, int]) -> bytes:
    """Machine code for one compute capability, such as (9, 0). Raises CudaError with the compiler's words."""
    nvrtc = compiler()
    program = checked(nvrtc.nvrtcCreateProgram(SOURCE, b"dicache_choose.cu", 0, [], []))
    architecture = f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode()
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, 1, [architecture])
        if int(status):
            said = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
            checked(nvrtc.nvrtcGetProgramLog(program, said))
            raise CudaError(f"{status.name}: {said.decode(errors='replace').strip(' ' + chr(0) + chr(10))}")
        code: bytes = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
        checked(nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return code


@functools.cache
def kernel(device: int, capability: tuple[int, int]) -> Any:
    """The kernel in the current context, which must be that device's; loaded once and never unloaded."""
    module = checked(driver().cuModuleLoadData(compile_kernel(capability)))
    return checked(driver().cuModuleGetFunction(module, NAME))
