"""A layer imports only downwards, and the passes know nothing of what lies above them."""

from __future__ import annotations

import ast
import operator
import sys
from pathlib import Path

import pytest
import torch

import dicache_compile
import zoo

ROOT = Path(dicache_compile.__file__).parent
# From the bottom up; a module imports from its own layer and those before it.
LAYERS = (
    ("collecting", "errors", "plan", "program", "published", "kernels", "seen", "rules", "in_force"),
    ("gates", "estimators", "graph"),
    ("passes",),
    ("write",),
    (
        *("config", "site_rule", "checks", "asked_sites", "fields", "presets", "qualities", "ranks"),
        *("schedules", "planning", "lowering"),
    ),
    ("options", "cut", "cost", "compiled", "files", "mistakes", "plain", "tracing"),
    ("engines",),
    ("calls",),
    (
        "armed",
        "calibration",
        "integrations",
        "subject",
        "summary",
        "reset",
        "configure",
        "explain",
        "explanation",
        "backend",
    ),
    ("report", "enable", "artifacts", "packages"),
    ("choosing", "tune"),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
OF_THE_COMMAND = {"typer", "rich", "numpy", "skimage"}  # of the extra `cli`, and what that brings
OF_CALIBRATION = {"tqdm", "numpy", "safetensors"}  # used where they are there
MODULES = sorted(ROOT.rglob("*.py"))
GRAPH_AND_PASSES = [path for path in MODULES if path.parent.name in ("graph", "passes")]


def layer(module: str) -> int:
    return next(height for height, names in enumerate(LAYERS) if module in names)


def imported(path: Path) -> set[str]:
    """The top-level names of this package that a file imports."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {(*above, *name.split("."))[0] for name in names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_layer_imports_only_downwards(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imported(path):
        assert layer(name) <= layer(own), f"{own} imports {name}"


def test_graph_and_passes_know_no_config_no_engine_and_no_model() -> None:
    for path in GRAPH_AND_PASSES:
        assert imported(path) <= {"graph", "passes", "plan", "errors"}
        assert "diffusers" not in path.read_text()


def test_graph_and_passes_have_no_name_of_a_model_or_of_its_lists() -> None:
    entries = zoo.entries().values()
    names = {entry.model for entry in entries} | {path for entry in entries for path in entry.trunk}
    for path in GRAPH_AND_PASSES:
        tree = ast.parse(path.read_text())
        described = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        }
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} - described
        assert not {text for text in texts if isinstance(text, str) and text in names}


def test_what_speaks_to_cuda_knows_nothing_of_what_runs() -> None:
    for path in (ROOT / "engines" / "cuda").glob("*.py"):
        assert imported(path) <= {"engines", "errors", "collecting"}
        text = path.read_text()
        assert not any(f"from ..{name}" in text for name in ("base", "captured", "recording", "choice"))


def test_every_file_is_small() -> None:
    assert max(len(path.read_text().splitlines()) for path in MODULES) <= 260


def test_the_package_imports_nothing_but_torch() -> None:
    """The only hard dependency is torch (and sympy, which torch cannot do without); the command has an extra."""
    more = {"cli": OF_THE_COMMAND, "calibration": OF_CALIBRATION}
    for path in MODULES:
        allowed = {"torch", "sympy"} | more.get(path.parent.name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top in allowed, f"{path.name} imports {name}"


def test_names_of_operators_are_listed_in_one_file() -> None:
    known = (torch.Tensor, torch, torch.nn.functional, operator, torch.ops.aten)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            listed = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
            texts = [one.value for one in listed if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            names = [text for text in texts if any(hasattr(where, text) for where in known)]
            assert len(names) < 3 or path.name in ("operators.py", "__init__.py"), f"{path.name}:{node.lineno}: {names}"
