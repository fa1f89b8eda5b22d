"""The notebooks run from their first cell to their last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the notebooks draw with it")
NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["compare_and_tune", "start"]


@pytest.mark.exhaustive  # in CI by `make notebooks`
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)  # where Jupyter runs it
    notebook = json.loads(path.read_text())
    scope: dict[str, Any] = {"__name__": path.stem}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # they change with each version: nothing is kept
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), scope)
