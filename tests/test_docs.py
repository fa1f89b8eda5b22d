"""The documents' examples run."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from dicache_compile import DiCacheConfig, dicache_backend, summary

from . import models
from .test_contract import generate

GUIDE = Path(__file__).parent.parent / "CONTRIBUTING.md"


def test_the_gate_and_the_estimator_of_the_guide_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, estimator, use = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    module = types.ModuleType("examples_of_the_guide")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    scope: dict[str, Any] = vars(module)
    for source in (gate, estimator):
        exec(source, scope)
    model = models.make(models.Mixed)

    def eagerly(**config: Any) -> DiCacheConfig:
        return DiCacheConfig(lowering="eager", strict=True, **config)

    import torch

    scope |= {"DiCacheConfig": eagerly, "dicache_backend": dicache_backend, "model": model, "torch": torch}
    exec(use, scope)
    assert scope["config"].gate == scope["InputChange"](threshold=0.2)
    generate(scope["model"], model)
    steps = summary(model).generations[-1].streams["0"]
    assert 0 < sum(step.deep for step in steps) < len(steps)
    assert {step.gamma for step in steps} == {None, 1.5}
