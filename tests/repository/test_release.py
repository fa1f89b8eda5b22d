"""What is handed out: a wheel and a source distribution with nothing extra in them, and what is said beside them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import dicache_compile
from tests.helpers.pages import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

PACKAGE = ROOT / "dicache_compile"
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
# Of a source distribution, beside the package: what is read before it is installed, and what installs it.
BESIDE = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md", "pyproject.toml"}
MADE = {"PKG-INFO", "setup.cfg", "dicache_compile.egg-info"}  # by setuptools
USE = """
import torch
import dicache_compile
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.inner(nn.functional.scaled_dot_product_attention(x, x, x))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, hidden_states, timestep):
        x = hidden_states + torch.sin(timestep)
        for block in self.blocks:
            x = block(x)
        return x

torch.manual_seed(1)  # with some weights `strict` finds that the estimate is no better than the result before
model = Model().eval()
always = {"threshold": float("inf"), "max_consecutive_skips": None}
config = dicache_compile.DiCacheConfig(**always, lowering="eager", strict=True)
model.compile(backend="dicache", fullgraph=True, options=config.options())
with torch.no_grad(), dicache_compile.generation():
    for step in range(6):
        model(torch.ones(1, 2, 8), torch.tensor(1.0 - step / 8))
(generation,) = dicache_compile.summary(model).generations
print(dicache_compile.__file__, dicache_compile.__version__)
print("".join(str(step.decisions[0]) for step in generation.streams["0"]))
"""


def run(*command: Any, **how: Any) -> str:
    # A path to this checkout would have it found in place of what is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, timeout=300, check=False, **how
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def own_files(root: Path) -> set[str]:
    """Of the package, without what Python leaves there."""
    found = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"dicache_compile/{path.relative_to(root).as_posix()}" for path in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built from a checkout in which people have worked."""
    pytest.importorskip("build", reason="the group `release` of pyproject.toml is not installed")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in [*BESIDE, "dicache_compile", "tests/repository", "docs", "examples"]:
        (source / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    left = ("build/lib/dicache_compile/stale.py", "dicache_compile/__pycache__/a.cpython-311.pyc", ".venv/a.py")
    for name in (*left, ".cache/inductor/a.py", "bench/measured/gpu.jsonl", "dicache_compile/graph/a.pyc", "a.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    return out


def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if name.startswith(f"dicache_compile-{dicache_compile.__version__}.dist-info/")}
    assert names - about == own_files(PACKAGE)
    assert {name.partition("/")[2] for name in about} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt",
    }  # fmt: skip


def test_the_source_distribution_has_what_builds_the_wheel_and_nothing_else(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        files = [Path(*Path(member.name).parts[1:]) for member in members if member.isfile()]
    assert {str(path) for path in files if path.parts[0] == "dicache_compile"} == own_files(PACKAGE)
    assert {path.parts[0] for path in files} - MADE == BESIDE | {"dicache_compile"}


def test_what_an_index_would_refuse_is_not_in_them(built: Path) -> None:
    pytest.importorskip("twine", reason="the group `release` of pyproject.toml is not installed")
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_the_wheel_alone_installs_and_works(built: Path, tmp_path: Path) -> None:
    import torch

    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # In place of installing torch again. What is installed in the environment itself comes first.
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))
    where, decisions = run(python, "-I", "-c", USE, cwd=tmp_path).splitlines()
    assert where == f"{site / 'dicache_compile' / '__init__.py'} {dicache_compile.__version__}"
    assert decisions == "ddd..."


@pytest.mark.skipif(tomllib is None, reason="Python 3.10 has no tomllib")
def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    (newest, *_) = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == dicache_compile.__version__


def test_an_entry_of_the_changelog_is_one_sentence() -> None:
    entries = re.split(r"^- ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    for entry in entries:
        text = re.sub(r"`[^`]*`", "x", " ".join(entry.partition("\n\n")[0].split()))
        assert text.endswith("."), entry
        assert not re.search(r"[.?!] (?=[A-Zx])", text), entry


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_the_issue_templates_are_forms_that_github_takes(path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="the group `release` of pyproject.toml is not installed")
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


def test_a_bug_is_told_with_the_versions_and_what_was_cut() -> None:
    yaml = pytest.importorskip("yaml", reason="the group `release` of pyproject.toml is not installed")
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    labels = " ".join(field["attributes"]["label"] for field in form["body"] if field.get("validations"))
    assert "dicache env --json" in labels
    assert "explain(model)" in labels


def test_the_paper_is_what_a_citation_credits() -> None:
    yaml = pytest.importorskip("yaml", reason="the group `release` of pyproject.toml is not installed")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert cited["title"] in (ROOT / "README.md").read_text()
    assert "2508.17356" in cited["doi"]
    assert [author["family-names"] for author in cited["authors"]] == [
        "Bu", "Ling", "Zhou", "Wang", "Zang", "Lin", "Wang",
    ]  # fmt: skip
