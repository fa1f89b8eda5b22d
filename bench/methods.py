"""Writes docs/methods.md: what decides, what stands in, and for each published cache how far it can be had.

python -m bench.methods
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dicache_compile.presets import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = Path(__file__).with_name("methods_head.md")  # what no preset says of itself

_PUBLISHED, _PRESETS, _PLANNING = "test_published_rules.py", "test_presets.py", "test_planning.py"


@dataclass(frozen=True, slots=True)
class System:
    """One published cache."""

    name: str
    covered: Literal["yes", "partly", "no"]
    how: str  # a preset's name; or words
    reason: str  # of what is not; of a preset what it says itself stands before it
    test: str  # "file: function"


SYSTEMS = (
    System("DiCache", "yes", "flux", "", "test_official_trace.py: test_every_recorded_step_is_reproduced"),
    System("FirstBlockCache", "yes", "fbcache", "", f"{_PUBLISHED}: test_first_block_cache"),
    System("DBCache", "yes", "dbcache", "", f"{_PUBLISHED}: test_dbcache"),
    System("TeaCache", "yes", "teacache", "", f"{_PUBLISHED}: test_teacache"),
    System("EasyCache", "yes", "easycache", "", f"{_PUBLISHED}: test_easycache"),
    System("SeaCache", "yes", "seacache", "", f"{_PUBLISHED}: test_seacache"),
    System("WorldCache", "yes", "worldcache", "", f"{_PUBLISHED}: test_the_gate_of_worldcache"),
    System("AdaCache", "yes", "adacache", "", "test_adacache.py: test_adacache_goes_by_one_block_and_by_what_moves"),
    System(
        "BWCache",
        "yes",
        "bwcache",
        "",
        "test_gates.py: test_bwcache_goes_by_the_mean_of_all_blocks_and_ends_deep",
    ),
    System("H2-Cache", "yes", "h2cache", "", f"{_PUBLISHED}: test_h2cache"),
    System("FORA", "yes", "fora", "", "test_sublayers.py: test_parts_of_blocks_are_reused_and_the_rest_runs"),
    System("TaylorSeer", "yes", "taylorseer", "", f"{_PUBLISHED}: test_taylorseer"),
    System("HiCache", "yes", "hicache", "", f"{_PUBLISHED}: test_hicache"),
    System("FoCa", "yes", "foca", "", "test_estimators.py: test_foca_is_the_rolling_recursion_of_its_equations"),
    System("HyCa", "yes", "hyca", "", "test_calibrate.py: test_channels_that_move_alike_have_one_solver"),
    System(
        "AB-Cache",
        "yes",
        "abcache",
        "",
        "test_estimators.py: test_adams_bashforth_is_exact_one_gap_ahead_of_equal_gaps",
    ),
    System("FreqCa", "yes", "freqca", "", f"{_PUBLISHED}: test_freqca"),
    System("Spectrum", "yes", "spectrum", "", f"{_PUBLISHED}: test_spectrum"),
    System("MeanCache", "yes", "meancache", "", f"{_PUBLISHED}: test_meancache"),
    System(
        "L2P",
        "partly",
        "`tune`",
        "no code and no table are published: the weights are fitted as our trials say",
        "test_tune.py: test_fitted_weights_are_nearer_than_a_polynomial_on_other_seeds",
    ),
    System("MagCache", "yes", "magcache", "", f"{_PLANNING}: test_magnitudes_give_magcaches_steps"),
    System("SmoothCache", "yes", "smoothcache", "", f"{_PLANNING}: test_lags_give_smoothcaches_steps"),
    System(
        "DPCache, BAC, CEM, BudCache",
        "yes",
        "dpcache",
        "BudCache's climbing, and BAC's rule that volatile MLPs run together",
        f"{_PLANNING}: test_the_cheapest_schedule_is_that_of_all",
    ),
    System(
        "ERTACache", "partly", "ertacache", "", "test_calibrate.py: test_each_step_is_scaled_and_shifted_to_its_truth"
    ),
    System("CacheQuant", "partly", "cachequant", "", "test_calibrate.py: test_a_planted_scale_and_shift_are_found"),
    System("Learning-to-Cache, HarmoniCa", "yes", "learning-to-cache", "", f"{_PUBLISHED}: test_learning_to_cache"),
    System("Pyramid Attention Broadcast", "yes", "pab", "", f"{_PUBLISHED}: test_pyramid_attention_broadcast"),
    System(
        "FasterCache",
        "yes",
        "fastercache",
        "",
        f"{_PUBLISHED}: test_fastercaches_guidance",
    ),
    System(
        "ProfilingDiT",
        "yes",
        "profilingdit",
        "",
        f"{_PUBLISHED}: test_profilingdit",
    ),
    System(
        "ToCa",
        "partly",
        "toca",
        "DuCa and ClusCa, which pick tokens otherwise",
        f"{_PUBLISHED}: test_toca_picks_tokens",
    ),
    System(
        "SpeCa",
        "yes",
        "speca",
        "",
        f"{_PUBLISHED}: test_speca",
    ),
    System(
        "FlowCache",
        "yes",
        "flowcache",
        "chunks are calls or rows; a model that hands on several as one sequence has one decision, and one that writes "
        "its keys into a buffer in the blocks is refused",
        f"{_PUBLISHED}: test_flowcache",
    ),
    System(
        "MixCache",
        "partly",
        "mixcache",
        "",
        "test_guidance.py: test_mixcache_reuses_calls_steps_or_blocks_as_in_plain_pytorch",
    ),
    System("QuantCache", "no", "", "its cache's interval is AdaCache's idea; the rest is quantisation. No code", ""),
    System(
        "Temporal Feature Matters",
        "no",
        "",
        "quantisation. What it says of the timestep holds: what depends on that alone runs outside of the blocks",
        "",
    ),
    System("Skip-DiT", "no", "", "needs a model that was trained with skips", ""),
    System("CHORDS", "no", "", "solves steps on several devices at once", ""),
    System("AsymRnR", "no", "", "drops tokens in attention; a model that does so is cut as any other", ""),
    System("PackCache", "no", "", "bounds the keys and values of autoregressive models", ""),
    System("DreamCache", "no", "", "keeps features of a reference picture, by trained adapters", ""),
    System("CDT", "no", "", "a tokenizer of videos", ""),
    System("TFUP", "no", "", "a memory of samples for classification", ""),
)
_WORDS = {"yes": "covered", "partly": "partly", "no": "outside"}


def page() -> str:
    """The text of the page."""
    systems = ["| system | | how | what is not as published | test |", "|---|---|---|---|---|", *map(_row, SYSTEMS)]
    presets = ["| preset | source | what it does |", "|---|---|---|", *(_preset(name) for name in METHODS)]
    return "\n".join((HEAD.read_text(encoding="utf-8").rstrip(), "", *systems, "", _OF_PRESETS, "", *presets, ""))


_OF_PRESETS = """## All presets

`DiCacheConfig.preset(name, ...)` and `enable_cache(pipe, preset=name, ...)` take these, with the parameters that are
shown. `...` stands for one that has to be given. Any field of the config may be given, too, and counts before the
method's own."""


def _row(one: System) -> str:
    differs = "; ".join(text for text in (METHODS[one.how].differs if one.how in METHODS else "", one.reason) if text)
    how = f'`preset="{one.how}"`' if one.how in METHODS else one.how
    test = f"`{one.test.partition(': ')[2]}`" if one.test else ""
    return f"| {one.name} | {_WORDS[one.covered]} | {how} | {differs} | {test} |"


def _preset(name: str) -> str:
    one = METHODS[name]
    text = " ".join(inspect.getdoc(one.fields).split()) if one.fields.__doc__ else ""
    return f"| `{one.call}` | {one.source} | {text} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
