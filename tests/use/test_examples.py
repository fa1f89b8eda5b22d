"""The programs of `examples/` do what they say."""

from __future__ import annotations

import dataclasses
import importlib
import io
import itertools
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from dicache_compile import summary
from dicache_compile.calls.runs import current_run
from tests import models
from tests.fakes import fake_comfyui as comfy

STEPS = 10


class Network(models.SingleStream):
    """A model as ComfyUI calls it: latents [B, C, H, W], and options that it looks into and writes to."""

    def forward(  # type: ignore[override]
        self, x: Tensor, timestep: Tensor, context: Tensor, control: Any, transformer_options: dict[str, Any]
    ) -> Tensor:
        carried = self.enter(x.flatten(2).transpose(1, 2), timestep, context)
        tokens, time = carried["x"], carried["time"]
        patches = transformer_options.get("patches_replace", {}).get("dit", {})
        for number, block in enumerate(self.blocks):
            transformer_options["block_index"] = number
            if ("double_block", number) in patches:
                tokens = patches["double_block", number]({"img": tokens}, {"original_block": None})["img"]
            else:
                tokens = block(tokens, time)
        return self.leave({**carried, "x": tokens}).transpose(1, 2).reshape(x.shape)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The node, with the cut graph left uncompiled."""
    for name, module in comfy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    example = importlib.import_module("examples.comfyui")
    monkeypatch.setattr(example, "CONFIG", dataclasses.replace(example.CONFIG, lowering="eager", strict=True))
    yield example.NODE_CLASS_MAPPINGS["DiCache"]()
    sys.modules.pop("examples.comfyui")


def model() -> comfy.ModelPatcher:
    return comfy.ModelPatcher(comfy.BaseModel(models.make(Network)))  # type: ignore[arg-type]


def sample(patcher: Any, sampler: Any = comfy.sample_euler, seed: int = 0, steps: int = STEPS, **guider: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise, positive, negative = (torch.randn(1, *shape, generator=generator) for shape in ((4, 3, 4), (3, 4), (3, 4)))
    callback, end = guider.pop("callback", lambda step: None), guider.pop("end", 0.0)
    guide = comfy.CFGGuider(patcher, [comfy.Condition(positive)], [comfy.Condition(negative, end)], **guider)
    return guide.sample(noise, comfy.KSAMPLER(sampler), torch.linspace(1, 0, steps + 1), callback)


def decisions(patcher: Any) -> list[dict[str, str]]:
    """Of each run and stream, as `summary` prints them."""
    told = summary(patcher.get_model_object("diffusion_model")).generations
    return [
        {name: "".join(str(step.decisions[0]) for step in steps) for name, steps in run.streams.items()} for run in told
    ]


@pytest.mark.parametrize("roomy", [True, False], ids=["in one batch", "one by one"])
def test_the_node_gives_the_uncached_picture_where_nothing_is_reused(node: Any, roomy: bool) -> None:
    plain = model()
    (cached,) = node.patch(plain, "balanced", 1, 0.0)
    assert torch.equal(sample(cached, roomy=roomy), sample(plain, roomy=roomy))
    assert isinstance(plain.get_model_object("diffusion_model"), Network)


def test_each_condition_is_a_stream_that_keeps_its_name_from_run_to_run(node: Any) -> None:
    (cached,) = node.patch(model(), "balanced", 2, 1.0)
    first = sample(cached, roomy=False)
    assert torch.equal(sample(cached, roomy=False), first)
    told = decisions(cached)
    assert told == [{"stream 0": "ddd..D..dd", "stream 1": "ddd..D..dd"}] * 2


def test_conditions_that_run_as_one_batch_are_one_stream_and_one_that_ends_leaves_another(node: Any) -> None:
    (cached,) = node.patch(model(), "balanced", 0, 1.0)
    sample(cached, end=0.5)
    assert decisions(cached) == [{"stream 0": "ddd..D", "stream 1": "d..D"}]


def test_each_window_of_a_long_video_is_a_stream(node: Any) -> None:
    (cached,) = node.patch(model(), "balanced", 0, 1.0)
    sample(cached, windows=((0, 1), (2, 3)))
    assert decisions(cached) == [{"stream 0": "ddd..D..D.", "stream 1": "ddd..D..D."}]


def test_a_sampler_of_two_calls_a_step_ends_deep(node: Any) -> None:
    (cached,) = node.patch(model(), "balanced", 1, 1.0)
    sample(cached, comfy.sample_heun)
    (run,) = decisions(cached)
    assert [(len(marks), marks[-1]) for marks in run.values()] == [(2 * STEPS - 1, "d")]


def test_a_run_that_was_interrupted_leaves_nothing_to_the_next(node: Any) -> None:
    (cached,) = node.patch(model(), "balanced", 1, 1.0)
    expected = sample(cached)

    def interrupt(step: int) -> None:
        if step == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(cached, seed=1, callback=interrupt)
    assert torch.equal(sample(cached), expected)


def test_a_node_put_after_another_takes_its_place(node: Any) -> None:
    (once,) = node.patch(model(), "balanced", 1, 1.0)
    (twice,) = node.patch(once, "balanced", 1, 0.0)
    assert torch.equal(sample(twice), sample(model()))
    assert {kind: {key: len(own) for key, own in keys.items()} for kind, keys in twice.wrappers.items()} == {
        "outer_sample": {"dicache_compile": 1},
        "apply_model": {"torch.compile": 1, "dicache_compile": 1},
    }


def test_a_new_run_another_setting_and_the_patch_of_another_node_compile_nothing_that_is_there(node: Any) -> None:
    def traced() -> int:
        return int(sum(torch._dynamo.convert_frame.FRAME_COMPILE_COUNTER.values()))

    plain = model()
    (cached,) = node.patch(plain, "balanced", 1, 0.0)
    expected = sample(cached)
    before = traced()
    for quality, steps in (("high", STEPS), ("balanced", STEPS), ("fast", 7)):
        sample(node.patch(plain, quality, 1)[0], seed=1, steps=steps)
    assert traced() == before

    def louder(args: dict[str, Tensor], _: Any) -> dict[str, Tensor]:
        return {"img": args["img"] * 1.5}

    patched = plain.clone()
    patched.set_model_patch_replace(louder, "dit", "double_block", 2)
    (cached,) = node.patch(patched, "balanced", 1, 0.0)
    assert torch.equal(sample(cached), sample(patched))
    assert not torch.equal(sample(cached), expected)
    (cached,) = node.patch(plain, "balanced", 1, 0.0)
    assert torch.equal(sample(cached), expected)


@pytest.fixture
def painter() -> Any:
    """The server's part that draws, with a tiny FLUX that is left uncompiled."""
    diffusers = pytest.importorskip("diffusers", reason="the server's pipelines are diffusers'")
    from examples.server import Painter
    from tests.use.test_pipelines import flux

    class Prompted(diffusers.FluxPipeline):  # type: ignore[misc, name-defined]
        """Makes random numbers of a prompt, having no text encoder."""

        def encode_prompt(self, prompt: str, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
            generator = torch.Generator().manual_seed(len(prompt))
            shapes = ((1, 8, 32), (1, 32))
            return *(torch.randn(shape, generator=generator) for shape in shapes), torch.zeros(8, 3)

    pipe, _ = flux()
    pipe.transformer.requires_grad_(False)
    vae = diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=1, shift_factor=0.0)
    return Painter(Prompted(**{**pipe.components, "vae": vae}), compile=False, threshold=1.0)


def drawn(painter: Any, prompt: str, gone: Any = lambda: False, **more: Any) -> bytes:
    image: bytes = painter.paint(gone, prompt, **{"steps": 6, "side": 16, **more}).tobytes()
    return image


def test_requests_at_the_same_time_give_what_each_gives_alone(painter: Any) -> None:
    prompts = {"a": 3, "ab": 5, "abc": 6}
    alone = {prompt: drawn(painter, prompt, steps=steps) for prompt, steps in prompts.items()}
    assert len(set(alone.values())) == 3
    with ThreadPoolExecutor() as pool:
        together = [pool.submit(drawn, painter, prompt, steps=steps) for prompt, steps in prompts.items()]
        assert [one.result() for one in together] == list(alone.values())
    streams = {name for run in summary(painter.enabled).generations for name in run.streams}
    assert streams == {f"seat-{number}/cond" for number in range(3)}


def test_requests_take_turns_step_by_step(painter: Any) -> None:
    order: list[str] = []

    def told(prompt: str) -> Any:
        def gone() -> bool:
            order.append(prompt)
            if order == ["a"]:
                other.start()
                while len(painter.turns._queue) < 2:
                    time.sleep(0.001)
            return False

        return gone

    other = threading.Thread(target=drawn, args=(painter, "b", told("b")), kwargs={"steps": 4})
    drawn(painter, "a", told("a"), steps=4)
    other.join()
    assert "".join(order) == "aabababb"


def test_a_request_that_nobody_waits_for_leaves_nothing(painter: Any) -> None:
    from examples.server import SEATS, GoneError

    expected = drawn(painter, "a")
    asked = itertools.count()
    with pytest.raises(GoneError):
        drawn(painter, "ab", gone=lambda: next(asked) == 2)
    assert current_run() is None
    assert painter.seats.qsize() == SEATS
    for _ in range(SEATS):  # on whichever seat
        assert drawn(painter, "a") == expected


def test_the_server_answers_over_http(painter: Any) -> None:
    from PIL import Image

    from examples.server import server

    asked = {"prompt": "a", "steps": 6, "side": 16}
    with server(painter, 0) as serving:
        serving.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[attr-defined]
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        address = "http://{}:{}".format(*serving.server_address[:2])

        def post(request: Any) -> bytes:
            with urllib.request.urlopen(address, json.dumps(request).encode(), timeout=60) as answer:
                return bytes(answer.read())

        try:
            expected = drawn(painter, "a")
            assert Image.open(io.BytesIO(post(asked))).tobytes() == expected
            assert Image.open(io.BytesIO(post({**asked, "threshold": 0.0}))).tobytes() != expected
            for mistake, said in (({"threshold": -1}, "threshold"), ({"colour": 1}, "colour")):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    post({**asked, **mistake})
                assert refused.value.code == 400
                assert said in refused.value.read().decode()
            with socket.create_connection(serving.server_address[:2]) as client:
                body = json.dumps({**asked, "steps": 200}).encode()
                client.sendall(b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert Image.open(io.BytesIO(post(asked))).tobytes() == expected
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert "seat-0/cond" in answer.read().decode()
        finally:
            serving.shutdown()
            thread.join()
    lengths = [len(steps) for run in summary(painter.enabled).generations for steps in run.streams.values()]
    assert max(lengths) < 200
