"""docs/models.md: what it says of `fullgraph=True`."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import zoo
from tests.helpers.pages import ROOT, tables

pytest.importorskip("diffusers", reason="most models are diffusers'")

ENTRIES = zoo.entries()


@pytest.mark.parametrize(("name", "answer"), [("z_image", "after a first call"), ("qwenimage21", "no")])
@torch.no_grad()
def test_fullgraph_is_tried_where_a_model_breaks_its_graph(name: str, answer: str) -> None:
    from bench.models import fullgraph

    assert fullgraph(ENTRIES[name]) == answer


def test_the_page_says_yes_of_the_models_that_the_tests_compile_as_one_graph() -> None:
    said = {
        row[0]: row[table[0].index("fullgraph")]
        for table in tables((ROOT / "docs" / "models.md").read_text())
        if "fullgraph" in table[0]
        for row in table[1:]
    }
    times = Counter(entry.model for entry in ENTRIES.values())
    cached = [entry for entry in ENTRIES.values() if entry.refused is None]
    named = {f"`{e.model}`" + f" ({e.name})" * (times[e.model] > 1): e.fullgraph for e in cached}
    assert {name: answer == "yes" for name, answer in said.items()} == named
