"""Serves a diffusers pipeline over HTTP: requests that come at the same time share one compiled model.

    python examples/server.py black-forest-labs/FLUX.1-dev
    curl localhost:8000 -d '{"prompt": "a red circle", "seed": 1, "steps": 28}' -o circle.png
    curl localhost:8000

Each request runs in a thread and takes turns with the others, one denoising step at a time. A request whose client
has gone stops at its next step. Needs diffusers, and nothing else beside the standard library.
"""

from __future__ import annotations

import copy
import io
import json
import queue
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from dicache_compile import enable_cache, generation, summary

SEATS = 4  # requests that run at the same time; each has state of its own on the device. Others wait


class GoneError(Exception):
    """Nobody waits for this picture any more."""


class Turns:
    """A lock that goes to the one who has waited longest: calls of one model must not overlap."""

    def __init__(self) -> None:
        self._queue: deque[object] = deque()
        self._moved = threading.Condition()

    def __enter__(self) -> None:
        with self._moved:
            self._queue.append(place := object())
            self._moved.wait_for(lambda: self._queue[0] is place)

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._queue.popleft()
            self._moved.notify_all()

    def give_way(self) -> None:
        """Lets all who wait now have a turn first."""
        self.__exit__()
        self.__enter__()


class Painter:
    """One pipeline for many requests."""

    def __init__(self, pipe: Any, **settings: Any) -> None:
        self.pipe = pipe
        self.enabled = enable_cache(pipe, **settings)
        self.turns = Turns()
        # Names that are used again: the next request takes over the memory, and what was captured for it.
        self.seats: queue.LifoQueue[str] = queue.LifoQueue()
        for number in reversed(range(SEATS)):
            self.seats.put(f"seat-{number}")

    def paint(
        self, gone: Callable[[], bool], prompt: str, seed: int = 0, steps: int = 28, side: int = 1024, **fields: Any
    ) -> Any:
        """A square PIL image. `fields`, such as `quality`, hold for this request alone; nothing is compiled for them.

        Raises GoneError at the end of a step once `gone` says so.
        """

        def after_step(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            self.turns.give_way()
            if gone():
                raise GoneError
            return {}

        # A scheduler counts its steps, so each request has one. All else is shared.
        own = type(self.pipe)(**{**self.pipe.components, "scheduler": copy.deepcopy(self.pipe.scheduler)})
        own.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(seed)
        seat = self.seats.get()
        try:
            with self.turns, generation(seat, **fields):
                sizes = {"height": side, "width": side, "num_inference_steps": steps}
                return own(prompt, generator=generator, callback_on_step_end=after_step, **sizes).images[0]
        finally:
            self.seats.put(seat)


def server(painter: Painter, port: int) -> ThreadingHTTPServer:
    """POST a JSON object of the arguments of `paint` to get a PNG; GET tells what was reused."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                image = painter.paint(self.gone, **request)
            except GoneError:
                return
            except Exception as error:
                mistake = isinstance(error, (TypeError, ValueError))  # the client's
                return self.answer(400 if mistake else 500, "text/plain", str(error).encode())
            image.save(png := io.BytesIO(), "PNG")
            self.answer(200, "image/png", png.getvalue())

        def do_GET(self) -> None:
            with painter.turns:
                told = str(summary(painter.enabled))
            self.answer(200, "text/plain", told.encode())

        def gone(self) -> bool:
            try:
                return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:  # still there, and silent
                return False
            except ConnectionError:
                return True

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("localhost", port), Handler)


if __name__ == "__main__":
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16).to("cuda")
    painter = Painter(pipe)
    server(painter, 8000).serve_forever()
