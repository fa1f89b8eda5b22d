"""The command `dicache`, as it is called: what it prints where, and what it exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dicache_compile import DiCacheConfig, Schedule, SiteRule
from dicache_compile import explain as explained
from dicache_compile.calibration.tuned import Tuned
from dicache_compile.cli import env as environment
from dicache_compile.cli.app import app
from dicache_compile.cli.diffusers_model import of_folder
from dicache_compile.cli.inputs import KNOWN
from dicache_compile.cli.settings import asked, value_of
from dicache_compile.engines import machine
from dicache_compile.estimators import Reuse
from dicache_compile.plain import plain
from tests.use import workloads
from tests.use.workloads import TOKENS

HERE = "tests.use.workloads"
ROOT = Path(__file__).parents[2]


def dicache(*args: str, code: int = 0) -> Any:
    """Runs the command in this process: what it printed, in `stdout` and `stderr`."""
    done = CliRunner().invoke(app, args, prog_name="dicache")
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def python(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a Python of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("factory", ["call", "named_call"])
def test_explain_tells_of_a_users_model_what_the_function_tells(factory: str) -> None:
    model, args, _ = workloads.call()
    shown = dicache("explain", f"{HERE}:{factory}").stdout
    assert "Mixed, called with " in shown
    assert str(explained(model, *args)) in shown


def test_a_json_document_stands_alone_on_stdout_whatever_the_users_code_prints() -> None:
    model, args, _ = workloads.call()
    done = dicache("explain", f"{HERE}:call", "--json", "--passes")
    found = json.loads(done.stdout)
    assert "what a user's code prints" in done.stderr
    assert (found["target"], found["model"]) == (f"{HERE}:call", "Mixed")
    expected = explained(model, *args, passes=True).to_dict()
    for one in (*found["passes"], *expected["passes"]):
        del one["seconds"]
    assert {name: found[name] for name in expected} == expected


def test_explain_cuts_as_the_config_says() -> None:
    given = ("--config", "probe_depth=2", "-c", "threshold=0.3")
    found = json.loads(dicache("explain", f"{HERE}:call", "--json", *given).stdout)
    assert found["probe"] == ["double_blocks.0", "double_blocks.1"]
    assert (found["config"]["threshold"], found["config"]["probe_depth"]) == (0.3, 2)


def test_explain_takes_the_first_call_that_sampling_makes() -> None:
    shown = dicache("explain", f"{HERE}:sampling").stdout
    assert f"hidden_states [2, {TOKENS}, 4]" in shown or f"0 [2, {TOKENS}, 4]" in shown
    assert "\ncached, in one full graph\n" in shown


def test_explain_takes_the_denoiser_of_a_pipeline() -> None:
    pytest.importorskip("diffusers", reason="the pipeline is diffusers'")
    shown = dicache("explain", f"{HERE}:pipeline").stdout
    assert "FluxTransformer2DModel, called with hidden_states" in shown
    assert "\ncached, in one full graph\n" in shown


def test_explain_exits_with_one_where_a_model_would_not_be_cached() -> None:
    assert "not cached: " in dicache("explain", f"{HERE}:not_cached", code=1).stdout
    found = json.loads(dicache("explain", f"{HERE}:not_cached", "--json", code=1).stdout)
    assert not found["cached"]
    assert found["reason"]


MISTAKES = {
    "no such function": ([f"{HERE}:cal"], "has no 'cal'; did you mean 'call'?"),
    "no such module": (["nowhere.at_all:call"], "there is no module 'nowhere' here or on PYTHONPATH"),
    "no such file": (["nowhere.py:call"], "there is no file nowhere.py"),
    "no function": ([f"{HERE}:NO_FACTORY"], "is a int: expected a function without arguments"),
    "another form": ([f"{HERE}:number"], "gave int: expected one of\n  (model, kwargs)"),
    "the factory fails": ([f"{HERE}:raises"], "raises() raised RuntimeError: no weights [here] (workloads.py:"),
    "never called": ([f"{HERE}:never_calls_its_model"], "never called Mixed"),
    "no such class": (["FluxTransformer3DModel"], "has no class 'FluxTransformer3DModel'; did you mean "),
    "no model": (["FluxPipeline"], "FluxPipeline is no model: expected a class such as FluxTransformer2DModel"),
    "no such folder": (["./nowhere"], "there is no folder nowhere"),
    "unknown inputs": (["ZImageTransformer2DModel"], "it is not known what ZImageTransformer2DModel is called with"),
    "unknown input": (["FluxTransformer2DModel", "-m", "num_layers=1", "-m", "num_single_layers=1", "-i", "x=1"],
                      "--input x: FluxTransformer2DModel takes hidden_states, "),
    "no shape": (["FluxTransformer2DModel", "-m", "num_layers=1", "-i", "timestep=a"], "expected NAME=SHAPE"),
    "no dtype": (["FluxTransformer2DModel", "--dtype", "int8"], "--dtype int8: expected a floating dtype"),
    "unknown field of the model": (["FluxTransformer2DModel", "-m", "num_layer=1"], "the nearest is 'num_layers'"),
    "not for a factory": ([f"{HERE}:call", "-m", "depth=1"], "--model is for models of diffusers"),
    "unknown field": ([f"{HERE}:call", "-c", "thresold=1"], "unknown option 'thresold'; the nearest is 'threshold'"),
    "bad value": ([f"{HERE}:call", "-c", "threshold=-1"], "threshold: expected a number from 0 to inf, got -1"),
    "bad call": ([f"{HERE}:call", "-c", "schedule=Schedule.every(0)"], "expected period to be a whole number"),
    "no value": ([f"{HERE}:call", "-c", "threshold"], "expected FIELD=VALUE"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_users_mistake_is_a_line_that_says_what_to_do(name: str) -> None:
    if "diffusers" in (args := MISTAKES[name])[1] or args[0][0][0].isupper():
        pytest.importorskip("diffusers", reason="it is about its classes")
    done = dicache("explain", *args[0], code=2)
    assert args[1] in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_debug_shows_where_a_mistake_was_found() -> None:
    done = dicache("explain", f"{HERE}:raises", "--debug", code=2)
    assert "Traceback" in done.stderr
    assert "dicache: " in done.stderr


def test_a_fault_of_ours_has_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise AssertionError("an invariant")

    monkeypatch.setattr("dicache_compile.cli.env.environment", fails)
    assert "internal error, AssertionError: an invariant" in dicache("env", code=3).stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("1e-3", 0.001),
        ("inf", float("inf")),
        ("true", True),
        ("None", None),
        ("(1, 3)", (1, 3)),
        ("1,3", (1, 3)),
        ("estimate", "estimate"),
        ("'estimate'", "estimate"),
        ("blocks.0.inner", "blocks.0.inner"),
        ("double_blocks,single_blocks", ("double_blocks", "single_blocks")),
        ("bfloat16", torch.bfloat16),
        ("torch.float8_e4m3fn", torch.float8_e4m3fn),
        ("Schedule.every(4, after=2)", Schedule.every(4, after=2)),
        ("Reuse()", Reuse()),
        ("(SiteRule(sites=(0, 4)), SiteRule(sites=(4, 8)))", (SiteRule(sites=(0, 4)), SiteRule(sites=(4, 8)))),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),  # nothing but the package's own is called
        ("Schedule.__subclasses__()", "Schedule.__subclasses__()"),
    ],
)
def test_a_value_is_read_as_python_or_as_a_word(text: str, value: object) -> None:
    assert value_of("--config", text) == value


def test_a_field_of_inductor_is_told_from_ours() -> None:
    found = asked(["threshold=0.2", "max_autotune=True"])
    assert found.fields == {"threshold": 0.2, "max_autotune": True}
    assert found.inductors() == {"max_autotune": True}


def test_fields_are_changed_of_a_preset() -> None:
    given = ("--preset", "wan", "-c", "threshold=0.3", "-c", "num_steps=8")
    found = json.loads(dicache("explain", f"{HERE}:call", "--json", *given).stdout)["config"]
    expected = DiCacheConfig.preset("wan", threshold=0.3, num_steps=8)
    assert found == plain(expected)
    done = dicache("explain", f"{HERE}:call", "--preset", "published", code=2)
    assert "Mixed" in done.stderr


def test_a_quality_is_a_field_like_others() -> None:
    given = ("--json", "-c", "quality=fast")
    assert json.loads(dicache("explain", f"{HERE}:call", *given).stdout)["config"]["quality"] == "fast"


TINY = ("num_layers=2", "num_single_layers=2", "attention_head_dim=16", "num_attention_heads=2",
        "joint_attention_dim=32", "pooled_projection_dim=32", "axes_dims_rope=(4, 4, 8)")  # fmt: skip


def test_explain_makes_a_model_of_diffusers_of_its_class_without_weights() -> None:
    pytest.importorskip("diffusers", reason="the class is of diffusers")
    given = [word for field in TINY for word in ("--model", field)]
    found = json.loads(dicache("explain", "FluxTransformer2DModel", "--json", *given).stdout)
    assert found["trunk"] == ["transformer_blocks", "single_transformer_blocks"]
    assert found["streams"][0] == {"shape": [1, 4096, 32], "dtype": "bfloat16"}  # of 1024 x 1024 pixels
    assert found["timestep"] == "timestep"


def test_explain_reads_the_config_of_a_folder_and_of_a_pipelines_folder(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the folder is of diffusers")
    fields = dict(settings_of(field) for field in TINY)
    diffusers.FluxTransformer2DModel(**fields, guidance_embeds=True).save_config(tmp_path / "pipe" / "transformer")
    shapes = ("hidden_states=2x16x64", "img_ids=16x3", "guidance=2", "encoder_hidden_states=2x512x32",
              "pooled_projections=2x32", "timestep=2")  # fmt: skip
    given = ("--json", "--dtype", "float32", *(word for shape in shapes for word in ("--input", shape)))
    found = json.loads(dicache("explain", str(tmp_path / "pipe"), *given).stdout)
    assert found["target"] == str(tmp_path / "pipe")
    assert found["streams"][0] == {"shape": [2, 16, 32], "dtype": "float32"}
    pipe, folder, file = (
        of_folder(tmp_path / "pipe" / inner) for inner in ("", "transformer", "transformer/config.json")
    )
    assert pipe == folder == file


def settings_of(field: str) -> tuple[str, Any]:
    name, _, value = field.partition("=")
    return name, value_of("--model", value)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", KNOWN)
def test_the_inputs_that_are_known_fit_their_class(name: str) -> None:
    pytest.importorskip("diffusers", reason="the classes are of diffusers")
    from zoo.given import FOLDER

    tiny = [json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))]
    fields = next(({**one["init"], **one["deeper"]} for one in tiny if one["model"] == name), AURA_FLOW)
    fields |= {"rope_max_seq_len": 1024} if "rope_max_seq_len" in fields else {}
    given = [word for field, value in fields.items() for word in ("--model", f"{field}={value!r}")]
    assert json.loads(dicache("explain", name, "--json", *given).stdout)["cached"]


AURA_FLOW = {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
             "joint_attention_dim": 32, "caption_projection_dim": 32}  # fmt: skip


def test_env_tells_of_each_engine_whether_this_machine_can_have_it() -> None:
    found = json.loads(dicache("env", "--json").stdout)
    assert found["packages"]["torch"] == torch.__version__
    assert {one["name"]: one["reason"] is None for one in found["engines"]} == {
        "conditional": torch.cuda.is_available() and machine.possible_engines()[0].reason is None,
        "graphs": machine.why_no_captures() is None,
        "calls": True,
        "cond": True,
    }
    shown = dicache("env").stdout
    for engine in found["engines"]:
        assert f"{engine['name']} " in shown
        assert engine["reason"] is None or engine["reason"] in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")
def test_env_says_why_there_are_no_captures_without_cuda() -> None:
    conditional, graphs, calls, cond = machine.possible_engines()
    assert graphs.reason
    assert "CUDA" in graphs.reason
    assert conditional.reason == graphs.reason
    assert (calls.reason, cond.reason) == (None, None)


def test_env_says_what_the_bindings_say_where_there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "why_no_captures", lambda: None)
    monkeypatch.setattr(machine, "_why_no_conditional", lambda: "the driver is old")
    assert [one.reason for one in machine.possible_engines()] == ["the driver is old", None, None, None]

    def fails() -> str:
        raise RuntimeError("no context")

    monkeypatch.setattr(machine, "_why_no_conditional", fails)
    assert machine.possible_engines()[0].reason == "RuntimeError: no context"


def test_captures_need_another_allocator_than_cuda_malloc_async(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert "cudaMallocAsync" in (machine.why_no_captures() or "")


def test_env_says_what_inductor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.cpp_builder, "get_cpp_compiler", lambda: 1 / 0)
    assert "no C++ compiler was found" in (environment.environment().devices[0].compiles or "")


def test_the_demo_runs_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the demo draws")
    called: list[Any] = []

    def run(command: list[str], cwd: Path, check: bool) -> subprocess.CompletedProcess[str]:
        called.append((command[1:], cwd))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("dicache_compile.cli.demo.subprocess.run", run)
    dicache("demo", "--rounds", "2", "--picture", str(tmp_path / "a.png"))
    ((command, cwd),) = called
    assert command == ["-m", "bench.demo", "--rounds", "2", "--picture", str(tmp_path / "a.png")]
    assert (cwd / "bench" / "demo.py").is_file()


def test_the_demo_says_where_it_is_outside_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicache_compile.cli.demo.checkout", lambda: None)
    assert "the demo's trained model is in the repository" in dicache("demo", code=2).stderr


def test_without_its_libraries_the_package_loads_and_the_command_says_what_to_install(tmp_path: Path) -> None:
    missing = "import sys; sys.modules['typer'] = sys.modules['rich'] = None"
    done = python("-c", f"{missing}; from dicache_compile.cli import main; main()", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dicache needs typer and rich: pip install 'dicache-compile[cli]'\n"


def test_the_command_runs_in_a_folder_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"from {HERE} import not_cached as make\n")
    done = python("-m", "dicache_compile", "explain", "mine:make", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert not json.loads(done.stdout)["cached"]


def test_models_lists_presets_and_what_numbers_are_published_for() -> None:
    told = json.loads(dicache("models", "--json").stdout)
    assert told["published"]["FluxTransformer2DModel"] == "flux"
    assert told["presets"]["taylorseer"]["call"] == "preset('taylorseer', interval=6, order=1, first=3, where='trunk')"
    assert "wan2.1-t2v-14b" in told["numbers"]["magcache"]
    assert "teacache" in dicache("models").stdout


def test_tune_writes_what_it_finds(tmp_path: Path) -> None:
    file, drawing = tmp_path / "tuned.json", tmp_path / "trade.svg"
    numbers = ["--samples", "2", "--trials", "1", "--checks", "1", "--width", "1", "--steps", "6"]
    paths = ["-o", str(file), "--plot", str(drawing)]
    found = dicache("tune", f"{HERE}:sampling", "--deep", "3", *numbers, *paths)
    assert "3 of 6 steps run deep: 0, " in found.stdout
    assert Tuned.load(file).deep == 3
    assert drawing.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one aim, speedup, psnr or deep, got none"),
        (["--deep", "3", "--psnr", "40"], "got psnr and deep"),
        (["--deep", "3", "-o", "nowhere/tuned.json"], "there is no folder nowhere: make it first"),
    ],
)
def test_tune_needs_one_aim_and_a_place(arguments: list[str], message: str) -> None:
    assert message in dicache("tune", f"{HERE}:sampling", "--samples", "1", *arguments, code=2).stderr
