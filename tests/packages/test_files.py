"""A file that does not fit is refused before anything in it is run; one that does is laid out as its page says."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from dicache_compile import DiCacheConfig, generation, load_package, save_package
from dicache_compile.packages import aot
from tests import models
from tests.helpers.unpacked import kept, library_of

STEPS = 6
PROGRAM = "package/dicache/program.json"
Saved = tuple[Path, models.Model, Any, dict[str, fx.GraphModule]]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Saved:
    graphs = kept(monkeypatch, tmp_path)
    model = models.make(models.Mixed, depth=4)
    options = DiCacheConfig(threshold=0.3, num_steps=STEPS, blocks="once", lowering="eager", joint=False).options()
    call = torch.compile(model, backend="dicache", fullgraph=True, options=options)
    save_package(call, tmp_path / "model.pt2", *models.inputs(model, 0, STEPS))
    return tmp_path / "model.pt2", model, call, graphs


def edited(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """The same package with another program."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_name("other.pt2"), "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            new.writestr(entry, json.dumps(change(json.loads(content))) if entry == PROGRAM else content)
    return path.with_name("other.pt2")


def cut_short(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


def flipped(path: Path) -> Path:
    """With another bit in a library."""
    with zipfile.ZipFile(path) as archive:
        place = next(one.header_offset for one in archive.infolist() if one.filename.endswith(".so"))
    content = bytearray(path.read_bytes())
    at = content.index(b".so", content.index(b".so", place) + 3)  # past the header, in the text of the library
    content[at] ^= 1
    path.write_bytes(content)
    return path


def another_weight(path: Path) -> Path:
    """With another bit in the last weight."""
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("package/dicache/weights.bin")
    content = bytearray(path.read_bytes())
    content[content.index(weights) + len(weights) - 1] ^= 1
    path.write_bytes(content)
    return path


def compressed(path: Path) -> Path:
    """As something that grows when it is read may be."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("package/more.bin", bytes(1000))
    return path


def nested(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(PROGRAM, "[" * 200_000)
        archive.writestr("package/dicache/config.pkl", b"")
    return path


def without(path: Path, name: str) -> Path:
    """With a program that lacks something."""
    return edited(path, lambda about: {key: value for key, value in about.items() if key != name})


def foreign(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.json", "{}")
    return path


def text(path: Path) -> Path:
    path.write_text("no archive")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_short, "is no package, or not whole"),
        (flipped, "is no package, or not whole: Bad CRC-32"),
        (another_weight, "is no package, or not whole: Bad CRC-32"),
        (text, "is no package, or not whole: File is not a zip"),
        (foreign, "expected a file that dicache_compile.save_package wrote"),
        (compressed, r"is no package, or not whole: package/more\.bin is compressed"),
        (nested, "is no package, or not whole: maximum recursion depth"),
        (lambda path: without(path, "state"), r"its program has other content \(KeyError: 'state'\)"),
        (lambda path: without(path, "weights"), r"its program has other content \(KeyError: 'weights'\)"),
        (lambda path: edited(path, lambda about: {**about, "kind": "picture"}), "expected a file that dicache_compile"),
        (lambda path: edited(path, lambda about: {**about, "version": 7}), "expected version 1, found 7"),
        (lambda path: edited(path, lambda about: {**about, "torch": "1.0"}), "is of torch '1.0', and this is"),
        (
            lambda path: edited(path, lambda about: {**about, "machine": "abacus"}),
            "is of machine 'abacus', and this is",
        ),
    ],
    ids=[
        *("cut short", "a bit", "a weight", "no archive", "another archive", "compressed", "nested", "no state"),
        *("no weights", "kind", "version", "torch", "machine"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_in_it_is_run(
    saved: Saved, change: Callable[[Path], Path], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, *_ = saved
    monkeypatch.setattr(aot, "opened", lambda *_: pytest.fail("a library was opened"))
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("the config was read"))
    with pytest.raises(ValueError, match=message):
        load_package(change(path))


def test_a_file_that_is_not_there_or_a_config_of_an_unknown_plug_in_is_told(saved: Saved) -> None:
    path, *_ = saved
    with pytest.raises(FileNotFoundError):
        load_package(path.with_name("nothing.pt2"))
    other = path.with_name("other.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            new.writestr(
                entry, content.replace(b"probe_error", b"probe_terror").replace(b"DiCacheConfig", b"DiCacheConfug")
            )
    with pytest.raises(ValueError, match="its config has a gate or an estimator that is not there"):
        load_package(other)


def test_weights_are_taken_as_they_are_where_nobody_looks(saved: Saved) -> None:
    path, model, *_ = saved
    package = load_package(another_weight(path), check_weights=False)
    known = dict(model.named_parameters())
    assert sum(not torch.equal(one, known[name]) for name, one in package.named_buffers()) == 1


def test_a_package_that_was_packed_anew_still_has_its_weights(saved: Saved) -> None:
    path, model, _, _ = saved
    package = load_package(edited(path, dict))
    assert all(torch.equal(one, dict(model.named_parameters())[name]) for name, one in package.named_buffers())


class Runner:
    """Runs a package by what `docs/package.md` says, and takes nothing from `dicache_compile`."""

    def __init__(self, path: Path, graphs: dict[str, fx.GraphModule], weights: dict[str, Tensor]) -> None:
        with zipfile.ZipFile(path) as archive:
            self.about = json.loads(archive.read(PROGRAM))
            blob = bytearray(archive.read("package/dicache/weights.bin"))
        for name, one in self.about["weights"].items():
            dtype, count = getattr(torch, one["dtype"]), torch.Size(one["shape"]).numel()
            read = torch.frombuffer(blob, dtype=dtype, count=count, offset=one["offset"]).view(one["shape"])
            assert torch.equal(read, weights[name])
        self.weights = weights
        self.graphs = {
            link["graph"]: graphs[library_of(path, link["graph"])]
            for piece in self.about["pieces"].values()
            for link in piece["links"]
        }
        self.state = [
            torch.full(slot["shape"], float(slot["initial"]), dtype=getattr(torch, slot["dtype"]))
            for slot in self.about["state"]
        ]

    def slot(self, name: str) -> Tensor:
        return next(one for slot, one in zip(self.about["state"], self.state, strict=True) if slot["name"] == name)

    def begin(self) -> None:
        """A generation begins, which the host announces."""
        self.slot("restart").fill_(True)
        self.slot("run").copy_(torch.tensor([-1, 0]))
        for name, values in self.about["told"].items():
            slot = self.slot(name)
            if slot.dtype is torch.bool:
                slot.fill_(False)
                slot[[int(place) for place in values]] = True
            else:
                slot.copy_(torch.tensor(values).view(slot.shape))

    def step(self, arguments: list[Tensor]) -> list[Tensor]:
        registers: list[Any] = [None] * len(self.about["registers"])
        for place, one in enumerate(self.about["inputs"]):
            registers[place] = arguments[one["argument"]] if "argument" in one else self.weights[one["weight"]]
        for place, slot in enumerate(self.state):
            registers[len(self.about["inputs"]) + place] = slot
        self.run(self.about["ops"], registers)
        return [registers[place] for place in self.about["outputs"]]

    def run(self, ops: list[dict[str, Any]], registers: list[Any]) -> None:
        for op in ops:
            if "run" in op:
                self.piece(self.about["pieces"][op["run"]], registers)
            else:
                self.run(op["reused" if registers[op["choose"]].item() else "deep"], registers)

    def piece(self, piece: dict[str, Any], registers: list[Any]) -> None:
        places: list[Any] = [registers[place] for place in piece["reads"]]
        places += [None] * (piece["places"] - len(places))
        for link in piece["links"]:
            results = self.graphs[link["graph"]](*[places[place] for place in link["reads"]])
            for place, result in zip(link["gives"], results, strict=True):
                places[place] = result
        for register, output in zip(piece["gives"], piece["outputs"], strict=True):
            registers[register] = places[output["place"]] if "place" in output else output["value"]


@torch.no_grad()
def test_a_runner_that_is_written_from_the_page_runs_a_package(saved: Saved) -> None:
    path, model, call, graphs = saved
    runner = Runner(path, graphs, {name: one.detach() for name, one in model.named_parameters()})
    assert max(len(piece["links"]) for piece in runner.about["pieces"].values()) > 1  # blocks are compiled once
    for _ in range(2):
        runner.begin()
        with generation(num_steps=STEPS):
            for step in range(STEPS):
                inputs = models.inputs(model, step, STEPS)
                (ours,) = runner.step(list(inputs))
                assert torch.equal(ours, call(*inputs))
