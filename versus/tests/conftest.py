from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# The models are tiny: threads would wait for each other longer than they compute.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    """Each test compiles for itself, and no test's models are found by the next."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
