"""The documents' examples run."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dicache_compile
from dicache_compile import DiCacheConfig, dicache_backend, summary, tune
from tests import models
from tests.contract.test_contract import generate
from tests.helpers import unpacked
from tests.helpers.pages import DOCS, GUIDE, README, ROOT, blocks

STEPS = 6
COMMAND_LINE = ROOT / "docs" / "command-line.md"
WITH_EXAMPLES = [page for page in (README, *DOCS) if page != GUIDE and blocks(page.read_text(), "python")]


def test_the_gate_and_the_estimator_of_the_guide_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, estimator, use = blocks(GUIDE.read_text(), "python")
    module = types.ModuleType("examples_of_the_guide")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    scope: dict[str, Any] = vars(module)
    for source in (gate, estimator):
        exec(source, scope)
    model = models.make(models.Mixed)

    def eagerly(**config: Any) -> DiCacheConfig:
        return DiCacheConfig(lowering="eager", strict=True, **config)

    scope |= {"DiCacheConfig": eagerly, "dicache_backend": dicache_backend, "model": model, "torch": torch}
    exec(use, scope)
    assert scope["config"].gate == scope["InputChange"](threshold=0.2)
    generate(scope["model"], model)
    steps = summary(model).generations[-1].streams["0"]
    assert 0 < sum(step.deep for step in steps) < len(steps)
    assert {step.gamma for step in steps} == {None}  # fixed weights need no aid


class Pipeline:
    """Stands in for a pipeline with a checkpoint: a tiny one of random weights, called with a prompt."""

    def __init__(self) -> None:
        from tests.use.test_pipelines import flux

        self._pipeline, self._arguments = flux()
        self._pipeline.set_progress_bar_config(disable=True)
        self.transformer = self._pipeline.transformer.requires_grad_(False)
        self.components = self._pipeline.components

    def to(self, device: str) -> Pipeline:
        return self

    def __call__(self, prompt: str, **more: Any) -> Any:
        from tests.use.test_pipelines import run

        steps = more.pop("num_inference_steps", STEPS)
        if "generator" in more:
            more["seed"] = more.pop("generator").initial_seed()
        return types.SimpleNamespace(images=[run(self._pipeline, self._arguments, steps=steps, **more)])


def quickly(subject: Any, run: Callable[[int], Any], **aim: float) -> Any:
    """`tune` with few runs: of the aim only that there is one."""
    assert len(aim) == 1
    return tune(subject, run, deep=6, samples=2, trials=1, checks=1, width=1, progress=False)


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the examples take for given, small, and compiled without a compiler. They write to a folder of their own."""
    monkeypatch.chdir(tmp_path)
    diffusers = pytest.importorskip("diffusers", reason="the examples have its pipelines")
    monkeypatch.setattr(diffusers.FluxPipeline, "from_pretrained", lambda name, **_: Pipeline())
    compile_in_place: Callable[..., None] = nn.Module.compile

    def eagerly(module: nn.Module, *, options: dict[str, Any] | None = None, **more: Any) -> None:
        compile_in_place(module, options={**(options or {}), "lowering": "eager", "strict": True}, **more)

    monkeypatch.setattr(nn.Module, "compile", eagerly)
    monkeypatch.setattr(dicache_compile, "tune", quickly)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"what was compiled", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda artifacts: artifacts)
    unpacked.kept(monkeypatch, tmp_path)

    def advance(latents: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        return latents - velocity / STEPS

    model = models.make(models.Mixed)
    latents, _, prompt = models.inputs(model, 0, STEPS)
    return {
        "torch": torch, "pipe": Pipeline(), "model": model, "latents": latents, "prompt": prompt, "negative": -prompt,
        "scale": 2.0, "advance": advance, "timesteps": [torch.full((2,), 1 - i / STEPS) for i in range(STEPS)],
    }  # fmt: skip


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run_in_their_order(page: Path, scope: dict[str, Any]) -> None:
    for number, code in enumerate(blocks(page.read_text(), "python")):
        exec(compile(code, f"{page.name}, block {number}", "exec"), scope)


def test_the_pipeline_of_the_readme_reuses_steps_and_tells_of_it(
    scope: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(next(code for code in blocks(README.read_text(), "python") if "from_pretrained" in code), scope)
    assert re.match(r"cached, in one full graph\n", capsys.readouterr().out)
    (generation,) = summary(scope["pipe"].transformer).generations
    assert {name: len(steps) for name, steps in generation.streams.items()} == {"cond": 28, "uncond": 28}


def test_the_loop_of_ones_own_gives_two_streams_that_decide_together(scope: dict[str, Any]) -> None:
    page = ROOT / "docs" / "your-own-loop.md"
    loop = next(code for code in blocks(page.read_text(), "python") if "advance(" in code)
    exec(loop.replace("enable_cache(model)", "enable_cache(model, threshold=1e9)"), scope)
    (generation,) = summary(scope["model"]).generations
    deep = {name: [step.deep for step in steps] for name, steps in generation.streams.items()}
    assert deep == {name: [True] * 3 + [False] * 2 + [True] for name in ("cond", "uncond")}


def test_the_factories_of_the_command_line_are_workloads_of_the_command(scope: dict[str, Any]) -> None:
    pytest.importorskip("typer", reason="the command needs it")
    from dicache_compile.cli.factory import Workload, read, with_steps
    from dicache_compile.cli.rounds import both, measure
    from dicache_compile.cli.settings import asked

    for code in blocks(COMMAND_LINE.read_text(), "python"):
        exec(code, scope)
    pipeline, mine = (read(name, scope[name]()) for name in ("flux", "mine"))
    assert isinstance(pipeline, Workload)
    assert isinstance(pipeline.subject, Pipeline)
    assert isinstance(mine, Workload)
    with both(mine.subject, asked(["threshold=0"]), compiled=False) as each:
        found = measure(each, with_steps(mine, STEPS), [1, 2], lambda: None)
    assert [(one.deep, one.steps, one.psnr) for one in found.rounds] == [(STEPS, STEPS, math.inf)] * 2
    assert found.again_psnr == math.inf


def test_the_commands_of_the_command_line_are_understood() -> None:
    typer = pytest.importorskip("typer", reason="the command needs it")
    from dicache_compile.cli.app import app

    found = commands()
    assert {words[1] for words, _ in found} == {"explain", "compare"}
    for words, _ in found:
        command = typer.main.get_command(app).commands[words[1]]
        command.make_context(words[1], list(words[2:]))  # raises where an option is none


@pytest.mark.exhaustive
def test_the_page_of_the_command_line_shows_what_the_command_prints() -> None:
    pytest.importorskip("diffusers", reason="it is about one of its classes")
    for words, shown in commands():
        if shown:
            done = subprocess.run(
                [sys.executable, "-m", "dicache_compile", *words[1:]],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.split() == shown.split()  # the page breaks long lines


def commands() -> list[tuple[list[str], str]]:
    """Each command of the page, as words, with what it prints, where that is shown."""
    texts = [block.split("$ ")[1:] for block in blocks(COMMAND_LINE.read_text(), "console")]
    lines = [text.partition("\n") for text in itertools.chain.from_iterable(texts)]
    return [(shlex.split(command), shown) for command, _, shown in lines]
