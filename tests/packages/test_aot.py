"""What AOTInductor compiles runs without Dynamo and without the model's code, and gives what the model does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dicache_compile
import zoo
from dicache_compile import DiCacheConfig, generation, load_package, save_package, stream
from tests import models
from tests.contract.test_contract import assert_near
from tests.packages.test_packages import decisions, guided

STEPS = 6
ALONE = """
import sys
import torch
from dicache_compile import generation, load_package, stream, summary

package = load_package("model.pt2")
outputs = []
with torch.no_grad():
    for generation_of in torch.load("calls.pt"):
        with generation():
            for name, call in generation_of:
                with stream(name):
                    outputs.append(package(*call))
counters = torch._dynamo.utils.counters if "torch._dynamo" in sys.modules else {}
assert not counters.get("frames"), counters
assert not [name for name in sys.modules if name.split(".")[0] in ("tests", "zoo", "diffusers")]
found = [one.streams.items() for one in summary(package).generations]
torch.save((outputs, [{name: [step.deep for step in steps] for name, steps in one} for one in found]), "found.pt")
"""


def calls(model: models.Model) -> list[tuple[str, tuple[Tensor, ...]]]:
    """A generation with the two calls of guidance."""
    found = []
    for step in range(STEPS):
        latents, time, prompt = models.inputs(model, step, STEPS)
        found += [("cond", (latents, time, prompt)), ("uncond", (latents, time, -prompt))]
    return found


@torch.no_grad()
def here(call: Any, generations: list[list[tuple[str, tuple[Tensor, ...]]]]) -> list[Tensor]:
    found = []
    for each in generations:
        with generation():
            for name, inputs in each:
                with stream(name):
                    found.append(call(*inputs))
    return found


def test_a_package_runs_alone_in_a_process_as_the_compiled_model_does(tmp_path: Path) -> None:
    model = models.make(models.SingleStream, depth=3)
    # The truth runs eagerly, for which nothing else is compiled: equal to rounding.
    options = DiCacheConfig(threshold=0.3, num_steps=STEPS, blocks="whole", lowering="eager", strict=True).options()
    call = torch.compile(model, backend="dicache", fullgraph=True, options=options)
    both = [calls(model)] * 2
    torch.save(both, tmp_path / "calls.pt")
    save_package(call, tmp_path / "model.pt2", *both[0][0][1])
    environment = {**os.environ, "PYTHONPATH": str(Path(dicache_compile.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", ALONE], check=True, cwd=tmp_path, env=environment, timeout=300)
    ours, deep = torch.load(tmp_path / "found.pt")
    assert_near(ours, here(call, both))
    assert deep == decisions(call)
    assert 0 < sum(step for one in deep[0].values() for step in one) < 2 * STEPS


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "blocks"), [("flux", "once"), ("wan", "whole"), ("sd3", "whole")])
def test_a_compiled_package_of_a_diffusers_model_is_the_compiled_model(name: str, blocks: Any, tmp_path: Path) -> None:
    """Minutes each. The same kernels: equal to the bit."""
    pytest.importorskip("diffusers")
    entry = zoo.entries()[name]
    model = entry.build()
    config = DiCacheConfig(threshold=1.0, num_steps=STEPS, blocks=blocks, engine="calls", strict=True)
    model.compile(backend="dicache", fullgraph=True, options=config.options())
    save_package(model, tmp_path / "model.pt2", **entry.at_step(0, STEPS), return_dict=False)
    package = load_package(tmp_path / "model.pt2")
    theirs, ours = guided(model, entry), guided(package, entry)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert decisions(package) == decisions(model)
