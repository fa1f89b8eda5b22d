"""Runs the comparison and writes its page: `python -m versus --help`; `make bench` and `make bench-full`."""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import dicache_compile

from . import found, gallery, page, rows, sweep, tables
from .bars import DEEP_STEPS
from .calibrated import Calibrated
from .compare import Entrant, compare
from .costs import costs
from .families import FAMILIES
from .levels import Levels
from .methods import METHODS, PREFIX
from .roster import costed, equal, guarded_once, own, quality, scheduled
from .tune import tune
from .uncached import FewerSteps, Uncached
from .workload import WORKLOADS, Workload

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PARTS = ("schedule", "own", "equal", "quality", "found", "methods", "pictures", "sweep", "costs")
# Held-out seeds, and so generations of each setting.
SEEDS = {"schedule": 12, "own": 64, "equal": 64, "quality": 64, "found": 64, "methods": 16}
QUICK_SEEDS = {"schedule": 4, "own": 4, "methods": 2}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m versus", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="own settings, methods, costs of compiling; one model, few seeds; no page",
    )
    parser.add_argument("--tune", action="store_true", help="only find the settings of the parts equal and quality")
    parser.add_argument(
        "--family", choices=FAMILIES, action="append", help="with --tune, only this; may be given again"
    )
    parser.add_argument(
        "--deep",
        type=int,
        choices=DEEP_STEPS,
        action="append",
        help="of equal deep steps, only these are tuned; likewise",
    )
    parser.add_argument(
        "--learn",
        type=int,
        action="append",
        metavar="DEEP",
        help="only have our `tune` find so many deep steps",
    )
    parser.add_argument("--page", action="store_true", help="only write the page again, from the results")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be given again")
    parser.add_argument("--workload", choices=[w.key for w in WORKLOADS], action="append", help="likewise")
    parser.add_argument(
        "--system", action="append", help="only this, such as TaylorSeerCache, and the baseline; may be given again"
    )
    parser.add_argument("--size", type=_size, action="append", help="of the sweep only this, such as 64x128; likewise")
    parser.add_argument(
        "--results",
        type=Path,
        help="the file to add to, in place of one of versus/results; the page is then left as it is",
    )
    arguments = parser.parse_args()
    quiet()
    keys = arguments.workload or [workload.key for workload in (WORKLOADS[:1] if arguments.quick else WORKLOADS)]
    workloads = [workload for workload in WORKLOADS if workload.key in keys]
    results = arguments.results or rows.RESULTS / ("quick.jsonl" if arguments.quick else "full.jsonl")
    parts = arguments.part or (("own", "methods", "costs") if arguments.quick else PARTS)
    if arguments.deep and not (arguments.tune and "equal" in parts):
        parser.error("--deep: says what to tune for equal deep steps: give --tune, and no --part but with equal")
    if arguments.tune:
        for workload in workloads:
            targets = (arguments.deep or DEEP_STEPS) if "equal" in parts else ()
            tune(workload, arguments.family or list(FAMILIES), targets, "quality" in parts)
    elif arguments.learn:
        for workload in workloads:
            for deep in arguments.learn:
                print(learn(workload, deep))
    elif arguments.page:
        page.write(results, PAGE)
    else:
        known = {entrant.system.name for workload in workloads for entrant in own(workload)}
        known |= {FewerSteps.name, found.Found.name} | {PREFIX + method for method in METHODS}
        if unknown := set(arguments.system or ()) - known:
            parser.error(f"--system: no {', '.join(sorted(unknown))} among {', '.join(sorted(known))}")
        measure(results, parts, workloads, arguments.quick, arguments.system, arguments.size)
        print(f"\nThe rows: {results}")
        if not arguments.quick and arguments.results is None:  # of a file of its own: with --page
            page.write(results, PAGE)
            print(f"The page: {PAGE}")


def _size(text: str) -> tuple[int, int]:
    known = {f"{tokens}x{width}": (tokens, width) for tokens, width in sweep.SIZES}
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
    return known[text]


def measure(
    results: Path,
    parts: Sequence[str],
    workloads: Sequence[Workload],
    quick: bool,
    only: Sequence[str] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Rows are on disk as soon as a comparison is done, in the place of those that its systems had there."""
    rows.commit()  # as it is now: the comparisons take long

    def chosen(entrants: Sequence[Entrant]) -> list[Entrant]:
        return [entrant for entrant in entrants if only is None or entrant.system.name in only]

    seeds = QUICK_SEEDS if quick else SEEDS
    for workload in workloads:
        if "schedule" in parts:
            timed = compare("schedule", workload, chosen(scheduled(workload)), seeds["schedule"], quality=False)
            rows.replace(results, timed)
        if "own" in parts:
            rows.replace(results, compare("own", workload, chosen(own(workload, quick)), seeds["own"]))
        if "equal" in parts:
            rows.replace(results, compare("equal", workload, chosen(equal(workload)), SEEDS["equal"]))
        if "quality" in parts:
            rows.replace(results, compare("quality", workload, chosen(quality(workload)), SEEDS["quality"]))
        if "found" in parts and (only is None or found.Found.name in only):
            rows.replace(results, found.measure(workload, SEEDS["found"]))
        if "methods" in parts:
            run_methods(results, workload, seeds["methods"], only)
        if "pictures" in parts:
            gallery.draw(workload, page.grid_path(PAGE, workload))
        if "costs" in parts:
            done = []
            for entrant in chosen(costed(workload, quick)):
                done.append(costs(workload, entrant.system))
                rows.replace(results, done)
            if quick:
                print(tables.costs(done))
    if "sweep" in parts:
        threads = torch.get_num_threads()
        for tokens, width in sweep.SIZES if sizes is None else sizes:
            workload = sweep.workload(tokens, width)
            known = _threads_of(results, workload) if only is not None else None
            if known is None:
                sweep.fastest_threads(workload, threads, tries=max(1, sweep.SEEDS[tokens, width] // 6))
            else:  # as the systems that are not measured again
                torch.set_num_threads(known)
            entrants = chosen(scheduled(workload))
            if (tokens, width) in sweep.GUARDS_TELL:
                once = guarded_once(workload)
                entrants += [entrant for entrant in once if entrant.system == Uncached() or chosen([entrant])]
            timed = compare("sweep", workload, entrants, sweep.SEEDS[tokens, width], quality=False)
            rows.replace(results, timed)
        torch.set_num_threads(threads)


def run_methods(results: Path, workload: Workload, seeds: int, only: Sequence[str] | None) -> None:
    """Each method's rows are on disk before the next one starts; the peers come last, and with no choice of systems."""
    levels = Levels(workload, seeds)
    for method in tqdm(METHODS, desc=f"methods: {workload.name}", unit="method"):
        if only is None or PREFIX + method in only:
            rows.replace(results, levels.rows(method))
    if only is None:
        rows.replace(results, levels.same())


def learn(workload: Workload, deep: int) -> Path:
    """Has our `tune` find a config with so many deep steps, and keeps it for the parts `found` and `methods`."""
    known = Calibrated(workload)
    found.FOLDER.mkdir(exist_ok=True)
    return dicache_compile.tune(known.model, known.run, deep=deep).save(found.FOLDER / f"{workload.key}-{deep}.json")


def _threads_of(results: Path, workload: Workload) -> int | None:
    """How many threads a size of the sweep was measured on; None if it was not."""
    known = rows.read(results) if results.exists() else []
    return next((int(row.figures["threads"]) for row in known if row.workload == workload.name and row.figures), None)


def quiet() -> None:
    """Leaves the terminal to the progress bars: the libraries warn of their own matters."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # which it reads as it is imported
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # Blocks that are compiled one by one share their code, and so one limit, whichever system they are of.
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = 1 << 10, 1 << 14
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main()
