"""One stage in a process of its own: `python -m bench.gpu.stage flux1024 --out FOLDER`. `bench.gpu` starts these."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from .device import open_device
from .quiet import building
from .rows import Writer
from .systems import ORDER
from .tuning import tune_in_graphs

CASES = ("flux1024", "flux512", "wan", "small")
CHECKS = ("equality", "running", "changes", "expandable", "memory", "profiler", "capture")
LONG = 24 * 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=(*CASES, *CHECKS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, default=0.0, help="in seconds since 1970; 0: take all the time there is")
    parser.add_argument("--system", choices=ORDER, action="append", help="only this, of a case; may be given again")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU")
    arguments = parser.parse_args()
    # All systems compile the same `forward`, and each is one entry of its cache.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 4096
    device = open_device(arguments.rehearse)
    writer = Writer(arguments.out, device.name)
    if arguments.stage in CASES:
        from .compare import compare

        if not arguments.rehearse:
            tune_in_graphs()
        until = arguments.until or time.time() + LONG
        names = [name for name in ORDER if name in (arguments.system or ORDER)]
        compare(arguments.stage, writer, device, until, arguments.out, names)
    else:
        from .checks import check

        with building(arguments.out):
            check(arguments.stage, writer, device)


if __name__ == "__main__":
    main()
