"""`opensiglip serve`: a trained model behind an HTTP API."""

import os
import signal
from typing import Annotated, Any

import tyro

from opensiglip.apps.hosts import LOOPBACK, check_port
from opensiglip.bounds import Bounds, check_bounds
from opensiglip.errors import UserError
from opensiglip.inference.predictor import load

KEY = "OPENSIGLIP_API_KEY"
ENDING = 30  # seconds for what is asked when the end is; more than `requests.STALL`, so a stalled body gets its 408


def serve(
    model: Annotated[str, tyro.conf.Positional],
    *,
    port: Annotated[int, Bounds(at_least=1, at_most=65535)] = 8000,
    host: str = "127.0.0.1",
    allow_host: tuple[str, ...] = (),
    batch: Annotated[int, Bounds(at_least=1, at_most=1024)] = 32,
    queue: Annotated[int, Bounds(at_least=1)] = 512,
    wait_ms: Annotated[float, Bounds(at_least=0, at_most=10_000)] = 5.0,
) -> None:
    """Serve a model: OpenAI's /v1/embeddings for texts and images, /v1/classify, /v1/locate, /v1/caption.

    The environment variable OPENSIGLIP_API_KEY is the key of requests; it is required beyond this machine.

    Args:
        model: a run, its model/ folder, or a hub id.
        port: port, as in http://127.0.0.1:8000.
        host: address to listen on: 127.0.0.1 is for this machine only, 0.0.0.0 for everyone who can reach it.
        allow_host: host names that requests may use, such as that of a proxy in front of the server.
        batch: largest batch of inputs for the model.
        queue: largest number of waiting inputs; above it requests get 429.
        wait_ms: milliseconds that an input waits for others to share its batch.
    """
    check_bounds(serve, {"port": port, "batch": batch, "queue": queue, "wait_ms": wait_ms})
    check_port(host, port)
    key, local = os.environ.get(KEY) or None, host in LOOPBACK
    if not local and key is None:
        raise UserError(f"--host {host} opens the model to whoever reaches this machine; set {KEY} first.")
    try:
        import uvicorn

        from opensiglip.apps.serve.app import Limits, Server
    except ImportError as error:
        raise UserError(f'serve needs {error.name}; `pip install "opensiglip[serve]"`.') from None
    hosts = (*(LOOPBACK if local else ()), *allow_host) or None
    server = Server(load(model), Limits(batch, queue, wait_ms / 1e3), hosts=hosts, key=key)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when all is answered: then end with 0
        signal.signal(number, lambda *_: None)
    print(f"{server.answers.name} on http://{host}:{port}/v1; the API: /openapi.json", flush=True)
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": ENDING}
    uvicorn.Server(uvicorn.Config(server.app, host=host, port=port, **settings)).run()
