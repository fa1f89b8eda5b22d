"""What was compiled goes to the next process in one file; a file that does not fit is refused before it is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.runtime.runtime_utils import cache_dir
from torch._inductor.utils import fresh_cache
from torch.compiler._cache import CacheArtifactManager

from dicache_compile import DiCacheConfig, Schedule, dicache_backend, load, save
from dicache_compile.errors import CacheWarning
from dicache_compile.estimators import Reuse
from dicache_compile.lowering import kept
from tests import models
from tests.contract.test_contract import generate

STEPS = 4
CONFIG = DiCacheConfig(schedule=Schedule.steps(0, 2), estimator=Reuse(), num_steps=STEPS, strict=True)
Saved = tuple[Path, models.Model, list[torch.Tensor]]


def compiled(model: models.Model, config: DiCacheConfig = CONFIG) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend=dicache_backend, fullgraph=True, options=config.options())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """In a cache of its own, as of a process that compiled nothing else."""
    path = tmp_path_factory.mktemp("artifacts") / "model.dicache"
    torch.manual_seed(0)
    model = models.make(models.SingleStream, depth=2)
    with CacheArtifactManager.with_fresh_cache(), fresh_cache():
        outputs = generate(compiled(model), model, steps=STEPS)
        save(model, path)
        yield path, model, outputs


def test_what_is_loaded_needs_no_compiling(saved: Saved) -> None:
    path, model, outputs = saved
    for folder in ("fxgraph", "aotautograd"):  # what was compiled, but for the kernels of a CPU, which take long
        shutil.rmtree(Path(cache_dir()) / folder)
    load(path, model)
    counters.clear()
    again = generate(compiled(model), model, steps=STEPS)
    assert counters["aot_autograd"]["autograd_cache_hit"] >= 3
    assert counters["aot_autograd"]["autograd_cache_miss"] == 0
    assert all(torch.equal(a, b) for a, b in zip(again, outputs, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, payload: (header, payload[:-1]), "is not whole"),
        (lambda header, payload: (header, payload[:9] + bytes([payload[9] ^ 1]) + payload[10:]), "is not whole"),
        (lambda header, payload: ({**header, "version": 7}, payload), "expected version 1, found 7"),
        (lambda header, payload: ({**header, "torch": "1.0"}, payload), "is of torch '1.0'"),
        (lambda header, payload: ({**header, "device": "abacus"}, payload), "is of device 'abacus'"),
        (lambda header, payload: ({**header, "models": ["Other of 3"]}, payload), "is of Other of 3, and this is Sing"),
        (lambda header, payload: ({"kind": "picture"}, payload), "expected a file that"),
        (lambda header, payload: ([], payload), "expected a file that"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_unread(
    saved: Saved, change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model, _ = saved
    line, _, payload = path.read_bytes().partition(b"\n")
    header, payload = change(json.loads(line), payload)
    changed = tmp_path / "changed"
    changed.write_bytes(json.dumps(header).encode() + b"\n" + payload)
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda _: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=message):
        load(changed, model)


def test_what_is_no_file_of_ours_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="expected a file that dicache_compile"):
        load(tmp_path / "picture")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")


def test_a_model_that_has_not_run_or_compiles_nothing_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.make(models.SingleStream, depth=2)
    with pytest.raises(ValueError, match="run a generation first"):
        save(model, tmp_path / "file")
    generate(compiled(model, DiCacheConfig(lowering="eager")), model, steps=1)
    with CacheArtifactManager.with_fresh_cache(), pytest.raises(ValueError, match="PyTorch kept nothing"):
        save(model, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_parts_that_pytorch_cannot_keep_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make(models.SingleStream, depth=2)
    generate(compiled(model, DiCacheConfig(lowering="eager")), model, steps=1)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"all but one", None))
    monkeypatch.setattr(kept, "_lost", 0)
    with kept.watched():
        counters["aot_autograd"]["autograd_cache_saved"] += 1
    save(model, tmp_path / "file")
    with kept.watched():
        counters["aot_autograd"]["autograd_cache_bypass"] += 1
    with pytest.warns(CacheWarning, match="PyTorch cannot keep 1 of the parts"):
        save(model, tmp_path / "file")
