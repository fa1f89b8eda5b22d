"""Files of a calibration that are cut short, changed or made up are refused, and nothing else happens."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dicache_compile import DiCacheConfig, Schedule
from dicache_compile.calibration.recording import Recording
from dicache_compile.calibration.sealed import write
from dicache_compile.calibration.tuned import Point, Tuned
from dicache_compile.estimators import LearnedTable

TIMES = 300
Load = Callable[[Path], Any]


def tuned(folder: Path) -> tuple[list[Path], Load]:
    table = LearnedTable((0, 3), *[tuple((0.5,) for _ in range(6))] * 2)
    config = DiCacheConfig(schedule=Schedule.steps(0, 3), estimator=table, num_steps=6)
    found = Tuned(config, "Model of 3 parameters in 1 tensors", 2, 6, 2.5, (40.0, 41.5), (Point(2, 2.5, 40.0),))
    return [found.save(folder / "tuned.json")], Tuned.load


def recording(folder: Path) -> tuple[list[Path], Load]:
    tensors = {name: torch.randn(1, 1, 3, 4, 2) for name in ("x", "h", "y")}
    Recording(tensors, {"model": "Model of 3 parameters in 1 tensors", "form": "residual"}).save(folder / "run")
    return [folder / "run.json", folder / "run.safetensors"], lambda path: Recording.load(path.with_suffix(""))


KINDS = {"tuned": tuned, "recording": recording}


def cut_short(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flipped(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def without_a_part(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content))
    return content[:begin] + content[begin + rng.randint(1, 20) :]


def with_a_part_twice(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content))
    return content[:begin] + content[begin : begin + rng.randint(2, 20)] + content[begin:]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_changed_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    files, load = KINDS[kind](tmp_path)
    load(files[0])
    rng = random.Random(0)
    for _ in range(TIMES):
        one = rng.choice(files)
        whole = one.read_bytes()
        change = rng.choice((cut_short, flipped, without_a_part, with_a_part_twice))
        changed = change(whole, rng)
        if changed == whole or (one.suffix == ".json" and _means_the_same(changed, whole)):
            continue
        one.write_bytes(changed)
        with pytest.raises(ValueError, match=r"(record|tune) again"):
            load(files[0])
        one.write_bytes(whole)
    load(files[0])


def _means_the_same(changed: bytes, whole: bytes) -> bool:
    try:
        return bool(json.loads(changed) == json.loads(whole))
    except ValueError:
        return False


STRANGE: tuple[Any, ...] = (None, 3, -1, 1e400, "", "text", [], [[]], [None], {}, {"a": 1}, True, [10**30])


@pytest.mark.parametrize("kind", KINDS)
def test_what_somebody_made_up_with_a_true_checksum_is_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    files, load = KINDS[kind](tmp_path)
    about = json.loads(files[0].read_text())
    del about["sha256"]
    names = [name for name in about if name != "version"]
    refused = 0
    for name in names:
        for value in STRANGE:
            write(files[0], {**about, name: value})
            try:
                load(files[0])
            except ValueError:
                refused += 1
        write(files[0], {key: value for key, value in about.items() if key != name})
        try:
            load(files[0])
        except ValueError:
            refused += 1
    assert refused


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_nested_deeper_than_python_can_go_is_refused(kind: str, tmp_path: Path) -> None:
    files, load = KINDS[kind](tmp_path)
    files[0].write_text("[" * 200_000)
    with pytest.raises(ValueError, match="is no JSON, or not whole: maximum recursion depth"):
        load(files[0])


def test_the_two_files_of_two_recordings_are_not_taken_for_one(tmp_path: Path) -> None:
    first, load = recording(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    second, _ = recording(other)
    shutil.copy(second[1], first[1])
    with pytest.raises(ValueError, match=r"run\.safetensors is not the one that was written with .*run\.json"):
        load(first[0])
