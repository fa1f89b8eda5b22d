"""A model that cannot be in a package says why, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import DiCacheConfig, export_graph, save_package
from dicache_compile.errors import ExportError, LoweringError, UnsupportedGraphError
from dicache_compile.gates import ProbeError
from tests import models

_OUTSIDE = torch.ones(4)


class Model(models.SingleStream):
    """Hands `forward` on to `change`, before and after."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, extra: Any = None) -> Any:  # type: ignore[override]
        return self.after(super().forward(self.before(hidden_states, extra), timestep, prompt))

    def before(self, latents: Tensor, extra: Any) -> Tensor:
        return latents

    def after(self, out: Tensor) -> Any:
        return out


class Breaks(Model):
    def before(self, latents: Tensor, extra: Any) -> Tensor:
        torch._dynamo.graph_break()
        return latents


class Branches(Model):
    def before(self, latents: Tensor, extra: Any) -> Tensor:
        return latents * 2 if latents.sum() > 0 else latents


class Counts(Model):
    def before(self, latents: Tensor, extra: Any) -> Tensor:
        return latents + latents[latents > 0].sum()


class Reads(Model):
    def before(self, latents: Tensor, extra: Any) -> Tensor:
        return latents * int(latents.sum().item())


class Opaque(Model):
    def before(self, latents: Tensor, extra: Any) -> Tensor:
        return hidden(latents)


@torch.compiler.disable
def hidden(x: Tensor) -> Tensor:
    return x * 2


class Remembers(Model):
    calls = 0

    def before(self, latents: Tensor, extra: Any) -> Tensor:
        self.calls += 1
        return latents


class Outside(Model):
    def before(self, latents: Tensor, extra: Any) -> Tensor:
        return latents * _OUTSIDE


class Result:
    """Of a class of the model's own."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


class Returns(Model):
    def after(self, out: Tensor) -> Any:
        return Result(out)


class Takes(Model):
    def before(self, latents: Tensor, extra: Any) -> Tensor:
        return latents + extra.sample


class Adds(Model):
    def before(self, latents: Tensor, extra: Any) -> Tensor:
        return latents + extra


class ReturnsArgument(Model):
    def forward(self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, extra: Any = None) -> Any:
        return super().forward(hidden_states, timestep, prompt), prompt


REFUSED: dict[str, tuple[type[Model], str]] = {
    "a graph break": (Breaks, "Dynamo cannot make one graph of the model: .*graph_break.*fullgraph=True"),
    "a branch on data": (Branches, "Dynamo cannot make one graph of the model: Data-dependent branching"),
    "a number that is read": (Reads, r"a size or a number that only running tells: `sym_int` .*int\(latents\.sum"),
    "what Dynamo must not look into": (Opaque, "Dynamo cannot make one graph of the model: .*disable"),
    "a count of elements": (Counts, "a size or a number that only running tells: `getitem` .*latents > 0"),
    "a model that remembers": (Remembers, "a call changes Python objects, which a package has none of: model; have"),
    "a tensor from outside": (Outside, "_OUTSIDE is neither an argument nor a tensor of the model; pass it"),
    "a result of a class": (Returns, "without the model's code: the result is a Result; .*return_dict=False"),
    "an argument as a result": (
        ReturnsArgument,
        "a call returns one of its arguments as it is; have it return a clone",
    ),
}


@pytest.mark.parametrize(("kind", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("of", ["package", "graph"])
def test_a_model_that_cannot_be_exported_says_why(kind: type[Model], message: str, of: str, tmp_path: Path) -> None:
    model = models.make(kind, depth=3)
    call = models.inputs(model, 0, 4)
    with pytest.raises(ExportError, match=message):
        save_package(model, tmp_path / "model.pt2", *call) if of == "package" else export_graph(model, *call)
    assert not list(tmp_path.iterdir())


def test_what_torch_export_cannot_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("we found an operator\nand more")

    monkeypatch.setattr(torch.export, "export", fails)
    model = models.make(Model, depth=3)
    with pytest.raises(ExportError, match=r"torch\.export cannot take the graph: RuntimeError: we found an operator$"):
        export_graph(model, *models.inputs(model, 0, 4))


def test_an_argument_that_no_file_can_hold_is_told(tmp_path: Path) -> None:
    model = models.make(Takes, depth=3)
    with pytest.raises(
        ExportError, match=r"an argument that a package cannot take: extra is a Result; it takes tensors"
    ):
        save_package(model, tmp_path / "model.pt2", *models.inputs(model, 0, 4), extra=Result(torch.ones(4)))
    other = models.make(Adds, depth=3)
    latents, time, prompt = models.inputs(other, 0, 4)
    with pytest.raises(ExportError, match="extra: this tensor is given twice in the call; give a clone"):
        save_package(other, tmp_path / "model.pt2", latents, time, prompt, extra=latents)


def test_quantised_weights_are_told(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="it quantises")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = models.make(models.SingleStream, depth=3, width=32).requires_grad_(False)
    quantize_(model, Int8WeightOnlyConfig())
    with pytest.raises(ExportError, match=r"weight is a \w+, and AOTInductor takes plain tensors; make a package of"):
        save_package(model, tmp_path / "model.pt2", *models.inputs(model, 0, 4))


def test_a_dynamic_dimension_is_told(tmp_path: Path) -> None:
    model = models.make(models.SingleStream, depth=3)
    latents, time, prompt = models.inputs(model, 0, 4)
    torch._dynamo.mark_dynamic(prompt, 1)
    with pytest.raises(ExportError, match="mark"):
        save_package(model, tmp_path / "model.pt2", latents, time, prompt)


def test_a_model_that_is_not_cached_says_so(tmp_path: Path) -> None:
    model = models.make(models.SingleStream, depth=1)
    with pytest.raises(UnsupportedGraphError, match="only one transformer block found"):
        save_package(model, tmp_path / "model.pt2", *models.inputs(model, 0, 4))


def test_what_aotinductor_cannot_compile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler found\nand more")

    monkeypatch.setattr(torch._inductor, "aot_compile", fails)
    model = models.make(models.SingleStream, depth=3)
    with pytest.raises(
        LoweringError, match=r"Inductor cannot compile a part of the cut graph: .*no C\+\+ compiler found"
    ):
        save_package(model, tmp_path / "model.pt2", *models.inputs(model, 0, 4))
    assert not list(tmp_path.iterdir())


def test_a_gate_that_cannot_be_found_again_is_told(tmp_path: Path) -> None:
    class LocalError(ProbeError):
        pass

    model = models.make(models.SingleStream, depth=3)
    options = DiCacheConfig(gate=LocalError(threshold=0.1)).options()
    call = torch.compile(model, backend="dicache", fullgraph=True, options=options)
    with pytest.raises(
        ExportError, match=r"the config cannot be pickled: .*LocalError.*; define its gates and estimators in a"
    ):
        save_package(call, tmp_path / "model.pt2", *models.inputs(model, 0, 4))
