"""A stand-in for the CUDA driver, and tests that each run in a process of their own, where it is loaded."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

KINDS = {"KERNEL": 0, "MEMCPY": 1, "MEMSET": 2, "HOST": 3, "GRAPH": 4, "EMPTY": 5, "WAIT_EVENT": 6, "MEM_ALLOC": 10}
CODE = b"\x7fELFmachine code\x00"  # what the stand-in takes for a module
_SKIPPED = 77  # the exit status of a process that says why it cannot run its test
_HERE = Path(__file__).parent


def build(folder: Path) -> None:
    """Compiles the stand-in. Raises FileNotFoundError without a compiler."""
    compiler = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*compiler, "-o", str(folder / "libcuda.so.1"), str(_HERE / "driver.cpp")], check=True)


def need_bindings() -> None:
    """Skips a test where NVIDIA's bindings are missing or older than what the package works with."""
    try:
        found = version("cuda-bindings")
    except PackageNotFoundError:
        pytest.skip("cuda-bindings is not installed")
    if int(found.partition(".")[0]) < 13:
        pytest.skip(f"cuda-bindings {found} is older than 13")


class FakeDriver:
    """The stand-in that this process has loaded."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.fake_graph.restype = ctypes.c_void_p
        self._library.fake_journal.restype = self._library.fake_runs.restype = ctypes.c_char_p

    def graph(self, name: str, *kinds: str) -> int:
        """A graph as a capture would have made it: nodes of these kinds, each after the one before."""
        numbers = [KINDS[kind] for kind in kinds]
        made: int = self._library.fake_graph(name.encode(), (ctypes.c_int * len(kinds))(*numbers), len(kinds))
        return made

    def nest(self, graph: int, child: int) -> None:
        """Adds a graph as a node of another."""
        self._library.fake_nest(ctypes.c_void_p(graph), ctypes.c_void_p(child))

    def copies(self, graph: int, source: ctypes.c_bool, target: ctypes.c_bool) -> None:
        """When it runs, this graph copies one bool over another."""
        self._library.fake_copies(ctypes.c_void_p(graph), ctypes.byref(source), ctypes.byref(target))

    def fail(self, function: str, status: int) -> None:
        """The next call of this function does nothing and returns this status."""
        self._library.fake_fail(function.encode(), status)

    def set_version(self, version: int) -> None:
        self._library.fake_version(version)

    def set_context(self, context: int) -> None:
        self._library.fake_context(ctypes.c_void_p(context))

    def set_kernel_runs(self, whether: bool) -> None:
        """Whether the kernels that a caller adds do anything."""
        self._library.fake_kernel_runs(ctypes.c_bool(whether))

    def layout(self) -> list[int]:
        """The sizes of the parameters of a kernel, a branch and any node, and of what is known of an edge."""
        return [self._library.fake_layout(which) for which in range(4)]

    @property
    def journal(self) -> list[str]:
        """What was done so far, a line for each change."""
        return self._library.fake_journal().decode().splitlines()

    @property
    def runs(self) -> list[str]:
        """The names of the graphs that ran, in order."""
        return self._library.fake_runs().decode().splitlines()


def in_a_process(scenario: Callable[..., None]) -> Callable[[Path], None]:
    """A test whose body runs in a process of its own; it may say by `skip` why it cannot.

    Takes the fixture `fake_library`, the folder that the stand-in was built in.
    """

    @functools.wraps(scenario)
    def test(fake_library: Path) -> None:
        places = ":".join(filter(None, (str(fake_library), os.environ.get("LD_LIBRARY_PATH"))))
        done = subprocess.run(
            [sys.executable, "-m", "tests.fakes.fake_cuda.run", scenario.__module__, scenario.__name__],
            cwd=_HERE.parents[2],
            env={**os.environ, "LD_LIBRARY_PATH": places},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode == _SKIPPED:
            pytest.skip(done.stdout.strip())
        assert not done.returncode, done.stdout + done.stderr

    # pytest would take the scenario's own arguments for fixtures.
    del test.__wrapped__
    test.scenario = scenario
    return test


def skip(reason: str) -> None:
    """Ends a scenario's process as skipped."""
    print(reason, flush=True)
    os._exit(_SKIPPED)


def light_package(name: str) -> None:
    """Lets a package's modules be imported without what its `__init__` imports: torch takes seconds in each process."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    places: Sequence[str] = spec.submodule_search_locations or []
    bare = importlib.machinery.ModuleSpec(name, None, is_package=True)
    bare.submodule_search_locations = list(places)
    sys.modules[name] = importlib.util.module_from_spec(bare)
