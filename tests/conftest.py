from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

import dicache_compile.engines.capturable
import dicache_compile.engines.choice
from tests.fakes.recording_device import RecordingDevice
from tests.helpers.shared import traces_kept

# The models are tiny: threads would wait for each other longer than they compute.
torch.set_num_threads(1)
# Tracing makes millions of objects that live on: to look for cycles among them all the while is a tenth of the time.
gc.set_threshold(200_000, 20, 100)
# Dynamo times the guards of each graph with cold caches; to make them cold is a twentieth of a small graph's time.
vars(torch._dynamo.guards)["profile_guard_manager"] = lambda *_: 0.0


@pytest.fixture(autouse=True)
def _fresh_dynamo(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test compiles for itself, and no test's models are found by the next."""
    shares = request.node.get_closest_marker("shares_traces") is not None
    if not shares:
        torch._dynamo.reset()
    torch.manual_seed(0)
    with traces_kept() if shares else nullcontext():
        yield
    if not shares:
        torch._dynamo.reset()
    gc.collect()
    gc.freeze()  # what is left stays: the next collection need not go through the million objects of what was imported


@pytest.fixture(autouse=True)
def captures(monkeypatch: pytest.MonkeyPatch) -> RecordingDevice:
    """The engines that capture get a stand-in for CUDA, where they are asked for by name; "auto" knows it is none."""
    device = RecordingDevice()
    monkeypatch.setattr(dicache_compile.engines.capturable, "DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(dicache_compile.engines.choice, "captures_on", lambda _: device)
    return device
