"""`opensiglip demo`: a trained model in a web page, on this machine."""

from contextlib import suppress
from threading import Event
from typing import Annotated, Any

import tyro

from opensiglip.apps.demo.guard import RATE, WAITING, Guard
from opensiglip.apps.demo.layout import CSS, build, library, theme
from opensiglip.apps.demo.page import Page
from opensiglip.apps.hosts import LOOPBACK, check_port
from opensiglip.inference.predictor import load

UPLOAD = 100_000_000  # bytes; the server takes no more of a file; `page.FILE` is what it reads


def demo(
    model: Annotated[str, tyro.conf.Positional],
    *,
    images: str | None = None,
    port: int = 7860,
    host: str = "127.0.0.1",
) -> None:
    """Open a model in a web page: classify, search, caption, locate, describe, ask, feature map.

    Args:
        model: a run, its model/ folder, or a hub id.
        images: a folder of images to search, or an index of `opensiglip search-index`.
        port: port of the page, as in http://127.0.0.1:7860.
        host: address to listen on: 127.0.0.1 is for this machine only, 0.0.0.0 for everyone who can reach it.
    """
    library()
    check_port(host, port)
    predictor = load(model)
    index = None if images is None else predictor.index(images)
    if index is not None:
        print(f"{len(index.files)} images to search, {len(index.unreadable)} that can't be read", flush=True)
    launch(Page(predictor, index), host=host, port=port, wait=True)


def launch(page: Page, *, host: str, port: int, wait: bool) -> Any:
    """Serve the page; returns gradio's Blocks. Raises UserError if the port is taken."""
    check_port(host, port)
    from starlette.middleware import Middleware

    blocks = build(page)
    blocks.queue(max_size=WAITING, api_open=False)  # nothing passes the queue by
    guard = Middleware(Guard, local=host in LOOPBACK, largest=UPLOAD)
    blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,  # its lines invite to publish the page
        show_error=True,
        max_file_size=UPLOAD,
        allowed_paths=[str(path) for path in page.examples()],
        app_kwargs={"middleware": [guard]},
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        theme=theme(),
        css=CSS,
    )
    if wait:
        print(
            f"Open {blocks.local_url} in a browser; Ctrl-C ends the page. Questions are answered one at a time; "
            f"{WAITING} may wait, and one address may send {RATE} a minute.",
            flush=True,
        )
        with suppress(KeyboardInterrupt):
            Event().wait()
        blocks.close(verbose=False)
    return blocks
