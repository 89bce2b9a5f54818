"""The server under load against its encoder alone: images a second at so many clients, and memory over minutes."""

import asyncio
import base64
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from torchvision.io import encode_jpeg

from benchmarks.measure import Row, positive
from benchmarks.report import report
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.inference.device import best_device
from opensiglip.inference.encoder import IMAGES
from opensiglip.inference.predictor import Predictor
from opensiglip.models.model import Model
from opensiglip.recipes import siglip

FILES = 64  # images that the clients send in turn


@dataclass
class Load:
    """What clients saw: seconds of each answer, requests that were refused; bytes of the server, first and last."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    memory: list[int] = field(default_factory=list)


def bench(
    size: str = "B/16",
    resolution: int = 224,
    clients: int = 32,
    seconds: float = 30.0,
    minutes: float = 0.0,
    out: Path = Path("runs/bench"),
) -> None:
    """`opensiglip serve` with concurrent clients and one JPEG per request, against its encoder on decoded pixels.

    The encoder is timed before and after, with as many threads; both share the machine with whatever else runs.

    Args:
        size: size of the randomly initialised encoder.
        resolution: side of the images in pixels, for the encoder and the requests.
        clients: number of concurrent requests.
        seconds: seconds of load, and of the encoder alone.
        minutes: minutes of load in place of seconds; the server's memory is printed each minute.
        out: folder for the JSON and the plot.
    """
    positive(resolution=resolution, clients=clients, seconds=seconds)
    device = best_device()
    pipeline = TextPipeline.train(["a fox"])
    model = Model.new(siglip(size=size, resolution=resolution).architecture, len(pipeline)).eval()
    predictor = Predictor(Pretrained.of(model, pipeline, name="model"), device=device)
    source = open_source("scenes", split="val", pixels=resolution)
    images = [source.example(place).image for place in range(FILES)]
    bodies = [
        {"input": f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(image).numpy().tobytes()).decode()}"}
        for image in images
    ]
    framed = predictor.framed(images)[:IMAGES]

    def alone() -> tuple[float, float]:
        """Images a second, and a CPU second."""
        predictor.embed_framed(framed)
        began, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds / 2:
            predictor.embed_framed(framed)
            count += len(framed)
        return count / (time.perf_counter() - began), count / (time.process_time() - cpu)

    with tempfile.TemporaryDirectory() as folder:
        predictor.pretrained.save(Path(folder) / "model")
        before = alone()
        with server(Path(folder) / "model") as (url, process):
            asyncio.run(ask(url, bodies, clients, 2.0, process.pid))  # the first batches allocate
            used, began = psutil.Process(process.pid).cpu_times, time.perf_counter()
            idle = used()
            load = asyncio.run(ask(url, bodies, clients, minutes * 60 or seconds, process.pid))
            wall, busy = time.perf_counter() - began, used()
            spent = busy.user + busy.system - idle.user - idle.system
        after = alone()
    pace, per_cpu = (statistics.mean(both) for both in zip(before, after, strict=True))
    rate = len(load.seconds) / wall
    ordered = sorted(load.seconds)
    facts = {
        "refused": load.refused,
        "p50 ms": ordered[len(ordered) // 2] * 1e3,
        "p95 ms": ordered[int(len(ordered) * 0.95)] * 1e3,
        "MiB first": round(load.memory[0] / 2**20),
        "MiB last": round(load.memory[-1] / 2**20),
    }
    case = f"{size} {resolution} px, {clients} clients, {wall:.0f} s"
    slow, fast = (1 / end(before[0], after[0]) for end in (min, max))
    own = {"per CPU s": len(load.seconds) / spent, **facts}
    rows = [
        Row(case, "encoder alone", 1 / pace, fast, slow, None, 1.0, None, pace, {"per CPU s": per_cpu}),
        Row(case, "opensiglip serve", 1 / rate, 1 / rate, 1 / rate, None, rate / pace, None, rate, own),
    ]
    report("serve", rows, out, device)
    print(f"serve answers {rate / pace:.2f} of the encoder's images per second, "
          f"{len(load.seconds) / spent / per_cpu:.2f} of its images a CPU second")  # fmt: skip


@contextmanager
def server(model: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """`opensiglip serve` on a free port; it is ended by SIGTERM and must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "opensiglip", "serve", str(model), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "OPENSIGLIP_API_KEY"}
    with subprocess.Popen(command, env=environment) as process:
        try:
            while process.poll() is None:
                with socket.socket() as there:
                    if there.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1/embeddings", process
        finally:
            process.terminate()
        if process.wait(120):
            raise RuntimeError(f"the server ended with {process.returncode}")


async def ask(url: str, bodies: list[dict[str, str]], clients: int, seconds: float, pid: int) -> Load:
    """So many clients, each with one request at a time, for so long."""
    server = psutil.Process(pid)
    load, end = Load(memory=[server.memory_info().rss]), time.perf_counter() + seconds

    async def client(place: int) -> None:
        async with httpx.AsyncClient(timeout=120) as session:
            while (began := time.perf_counter()) < end:
                answer = await session.post(url, json=bodies[place % len(bodies)])
                place += clients
                if answer.status_code == 200:
                    load.seconds.append(time.perf_counter() - began)
                else:
                    load.refused += 1
                    await asyncio.sleep(0.1)

    async def watch() -> None:
        began = time.perf_counter()
        while (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(60.0, left))
            load.memory.append(server.memory_info().rss)
            if seconds > 60:
                minutes = (time.perf_counter() - began) / 60
                print(
                    f"minute {minutes:.1f}: {load.memory[-1] / 2**20:.0f} MiB, {len(load.seconds)} answers", flush=True
                )

    await asyncio.gather(watch(), *(client(place) for place in range(clients)))
    return load
