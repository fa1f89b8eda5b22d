"""Runs the body of one test: `python -m tests.fakes.fake_cuda.run MODULE NAME`."""

from __future__ import annotations

import importlib
import inspect
import sys

from tests.fakes.fake_cuda import FakeDriver, light_package

light_package("dicache_compile")
scenario = getattr(importlib.import_module(sys.argv[1]), sys.argv[2]).scenario
scenario(*(FakeDriver() for _ in inspect.signature(scenario).parameters))
