"""The kernel of the branch on the device, as NVIDIA's compiler makes it. Needs no device, but that compiler."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.fakes.fake_cuda import in_a_process, need_bindings, skip

UNDEFINED = 0  # the section of a symbol that is somewhere else


@pytest.fixture
def fake_library(tmp_path: Path) -> Path:
    """An empty folder: the driver is not called here."""
    need_bindings()
    return tmp_path


def compiled(capability: tuple[int, int]) -> bytes:
    """Code for a compute capability; skips the test where there is no compiler."""
    from dicache_compile.engines.cuda import driver, predicate

    try:
        driver.checked(driver.compiler().nvrtcVersion())
    except Exception as error:  # the bindings raise one of their own where the library is not found
        skip(f"NVRTC cannot be loaded: {' '.join(str(error).split())[:200]}")
    return predicate.compile_kernel(capability)


def symbols(code: bytes) -> dict[str, int]:
    """The names in the symbol table of a 64-bit ELF file, with their sections."""
    (table,), (size, count) = struct.unpack_from("<Q", code, 40), struct.unpack_from("<HH", code, 58)
    # Of each section: its type, where it is, how long it is, and which section has its names.
    sections = [struct.unpack_from("<4xI16xQQI", code, table + place * size) for place in range(count)]
    found = {}
    for kind, start, length, names in sections:
        for entry in range(start, start + length, 24) if kind == 2 else ():
            name, section = struct.unpack_from("<I2xH", code, entry)
            begin = sections[names][1] + name
            found[code[begin : code.index(b"\0", begin)].decode()] = section
    return found


@in_a_process
def test_the_kernel_is_machine_code_that_leaves_one_function_to_the_driver() -> None:
    for capability in ((9, 0), (10, 0)):
        code = compiled(capability)
        assert code[:5] == b"\x7fELF\x02"
        found = symbols(code)
        assert found["dicache_choose"] != UNDEFINED
        # Names with a dot are the compiler's own.
        missing = [name for name, section in found.items() if section == UNDEFINED and name and "." not in name]
        assert missing == ["cudaGraphSetConditional"], missing


@in_a_process
def test_an_architecture_that_the_compiler_does_not_know_is_told_in_its_words() -> None:
    compiled((9, 0))
    from dicache_compile.engines.cuda.driver import CudaError

    with pytest.raises(CudaError, match=r"^NVRTC_ERROR_INVALID_OPTION: .*gpu-architecture[^\0]*$"):
        compiled((1, 0))
