"""`opensiglip demo`: a trained model in a web page, on this machine."""

import base64
import errno
import html
import io
import socket
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image
from torchvision.transforms.v2 import functional
from transformers.utils import logging

from opensiglip.drawing import COLORS, draw_boxes
from opensiglip.errors import UserError
from opensiglip.report.features import pca_colours
from opensiglip.use.images import read_one
from opensiglip.use.maps import colour_map, heat_map
from opensiglip.use.predictor import Found, Predictor, load
from opensiglip.use.search import Index, thumbnails

SHOWN = 640  # pixels of the longer side of a picture on the page
UPLOAD = "20mb"  # of a file; what it unpacks to is bounded when it is read
LETTERS = 2_000  # of a text that is typed
CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto; }
#hits .grid-container { grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)) !important; }
#hits .caption-label { max-width: 100%; }
.pad { position: relative; line-height: 0; touch-action: none; cursor: crosshair; user-select: none; }
.pad img { width: 100%; pointer-events: none; }
.pad .box { display: none; position: absolute; border: 3px solid #D55E00; pointer-events: none; }
"""
PAD = """${value
? `<div class="pad"><img src="${value}" alt="the image, to drag a box on"><div class="box"></div></div>`
: `<p>Give an image first.</p>`}"""


def demo(
    model: Annotated[str, tyro.conf.Positional],
    *,
    images: str | None = None,
    port: int = 7860,
    host: str = "127.0.0.1",
) -> None:
    """Open a model in a web page: classify, search, caption, locate, describe, feature map.

    Args:
        model: a run, its model/ folder, or a hub id.
        images: a folder of images to search.
        port: where the page is, as in http://127.0.0.1:7860.
        host: who may open it: 127.0.0.1 is this machine alone, 0.0.0.0 whoever reaches it.
    """
    library()
    check_port(host, port)
    logging.disable_progress_bar()
    predictor = load(model)
    index = None if images is None else Index(predictor, images)
    if index is not None:
        print(f"{len(index.files)} images to search, {len(index.left_out)} that can't be read", flush=True)
    launch(Page(predictor, index), host=host, port=port, wait=True)


def launch(page: "Page", *, host: str, port: int, wait: bool) -> Any:
    """Serve the page; returns gradio's Blocks. Raises UserError if the port is taken."""
    check_port(host, port)
    gr = library()
    blocks = page.build()
    blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not wait,
        share=False,
        quiet=not wait,
        show_error=True,
        max_file_size=UPLOAD,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from the network
        css=CSS,
    )
    return blocks


def check_port(host: str, port: int) -> None:
    """Raises UserError where nothing can be served."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((host, port))
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise UserError(f"port {port} is in use; give another, such as --port {port + 1}.") from None
            raise UserError(f"--host {host} --port {port} can't be served ({error}); leave them out.") from None


def library() -> Any:
    """gradio, which only the demo needs. Raises UserError if it is not installed."""
    try:
        import gradio
    except ImportError:
        raise UserError('the demo needs gradio; `pip install "opensiglip[demo]"`.') from None
    return gradio


class Page:
    """The page's answers, one method a button; what goes wrong is shown in words."""

    def __init__(self, predictor: Predictor, index: Index | None = None) -> None:
        self.predictor, self.index = predictor, index

    def classify(self, image: str | None, labels: str) -> dict[str, float]:
        """How likely each of the labels, one a line or with commas between, is for the image."""
        names = [name.strip() for name in labels[:LETTERS].replace("\n", ",").split(",") if name.strip()]
        if not names:
            raise UserError("type labels, one a line or with commas between.")
        return self.predictor.classify(given(image), names)

    def search_by_text(self, text: str) -> list[tuple[Image.Image, str]]:
        """The images of the folder that are nearest to a text."""
        return thumbnails(self._index().by_text(typed(text)))

    def search_by_image(self, image: str | None) -> list[tuple[Image.Image, str]]:
        """The images of the folder that are nearest to the image."""
        return thumbnails(self._index().by_image(given(image)))

    def caption(self, image: str | None, beams: float = 1) -> str:
        """What stands on the image; with more than one beam, the likeliest text that a beam search meets."""
        return self.predictor.caption(given(image), num_beams=max(1, min(8, int(beams))))

    def locate(self, image: str | None, phrase: str) -> tuple[Image.Image, dict[str, Any]]:
        """The image with the box of the phrase drawn, and the box x1, y1, x2, y2 in pixels with its score."""
        found = self.predictor.locate(given(image), typed(phrase))
        return drawn(image, [found]), as_json(found)

    def propose(self, image: str | None) -> tuple[Image.Image, list[dict[str, Any]]]:
        """The image with phrases and boxes that the model finds by itself."""
        found = self.predictor.propose(given(image))
        return drawn(image, found), [as_json(one) for one in found]

    def describe(self, image: str | None, x1: float, y1: float, x2: float, y2: float) -> tuple[Image.Image, str]:
        """What stands in the box x1, y1, x2, y2, in pixels of the image."""
        if None in (x1, y1, x2, y2):
            raise UserError("give all four corners of the box, or drag it on the image.")
        text = self.predictor.describe(given(image), (x1, y1, x2, y2))
        return drawn(image, [Found(text, (x1, y1, x2, y2), 1.0)], scores=False), text

    def features(self, image: str | None, phrase: str = "") -> tuple[Image.Image, Image.Image | None]:
        """The patch tokens' first principal components as colours; with a phrase, how near each patch is to it."""
        tokens = self.predictor.features([given(image)])
        colours = colour_map(pca_colours(tokens.flatten(1, 2))[0], SHOWN)
        if not phrase.strip():
            return colours, None
        return colours, heat_map(read_one(given(image)), self.predictor.similarity([given(image)], typed(phrase))[0])

    def picture(self, image: str | None) -> str:
        """The image as the page can show it to drag on."""
        if image is None:
            return ""
        file = io.BytesIO()
        drawn(image, []).save(file, "JPEG", quality=90)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()

    def abilities(self) -> str:
        """What this model can do, in a sentence."""
        subject = self.predictor.subject
        can = [
            "classify" if subject.has_text or "cap" in subject.tasks else "",
            "caption" if "cap" in subject.tasks else "",
        ]
        can += ["locate", "propose"] if "aref" in subject.tasks else []
        can += ["describe a box"] if "gcap" in subject.tasks else []
        can += ["search by text"] if subject.has_text else []
        able = ", ".join(filter(None, can))
        return f"**{html.escape(subject.name)}** can {able}, search by image and draw its features."

    def build(self) -> Any:
        """The page as gradio's Blocks."""
        gr = library()
        with gr.Blocks(title="OpenSigLIP", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
            gr.Markdown(f"# OpenSigLIP\n{self.abilities()}")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    image = gr.Image(
                        type="filepath",
                        image_mode=None,
                        sources=["upload", "clipboard"],
                        label="Image",
                        height=360,
                        elem_id="image",
                        buttons=[],
                    )
                with gr.Column(scale=3, min_width=300):
                    with gr.Tab("Classify"):
                        labels = gr.Textbox(
                            label="Labels", lines=3, max_length=LETTERS, info="One a line, or with commas."
                        )
                        button = gr.Button("Classify", variant="primary")
                        shares = gr.Label(label="How likely", num_top_classes=10)
                        connect(button.click, self.classify, [image, labels], shares)
                    with gr.Tab("Search"):
                        text = gr.Textbox(label="Text to look for", max_length=LETTERS)
                        with gr.Row():
                            by_text = gr.Button("Search by text", variant="primary")
                            by_image = gr.Button("Search by the image")
                        hits = gr.Gallery(label="Nearest first", height="auto", buttons=[], elem_id="hits")
                        connect(by_text.click, self.search_by_text, [text], hits)
                        connect(text.submit, self.search_by_text, [text], hits, listed=False)
                        connect(by_image.click, self.search_by_image, [image], hits)
                    with gr.Tab("Caption"):
                        beams = gr.Slider(1, 8, value=1, step=1, label="Beams")
                        button = gr.Button("Caption", variant="primary")
                        said = gr.Textbox(label="Caption", lines=2, interactive=False)
                        connect(button.click, self.caption, [image, beams], said)
                    with gr.Tab("Locate"):
                        phrase = gr.Textbox(label="Phrase", max_length=LETTERS)
                        with gr.Row():
                            button = gr.Button("Locate", variant="primary")
                            find = gr.Button("Propose phrases and boxes")
                        boxed = gr.Image(label="Boxes", interactive=False, buttons=[], format="png")
                        numbers = gr.JSON(label="Boxes in pixels")
                        connect(button.click, self.locate, [image, phrase], [boxed, numbers])
                        connect(phrase.submit, self.locate, [image, phrase], [boxed, numbers], listed=False)
                        connect(find.click, self.propose, [image], [boxed, numbers])
                    with gr.Tab("Describe"):
                        gr.Markdown("Drag a box on the image, or type its corners in pixels.")
                        pad = gr.HTML(
                            "",
                            html_template=PAD,
                            js_on_load=Path(__file__).with_name("drag.js").read_text(encoding="utf-8"),
                            elem_id="pad",
                        )
                        with gr.Row():
                            corners = [
                                gr.Number(label=name, precision=1, min_width=70) for name in ("x1", "y1", "x2", "y2")
                            ]
                        button = gr.Button("Describe", variant="primary")
                        text = gr.Textbox(label="In the box", interactive=False)
                        outlined = gr.Image(label="The box", interactive=False, buttons=[], format="png")
                        connect(image.change, self.picture, [image], pad, listed=False)
                        connect(button.click, self.describe, [image, *corners], [outlined, text])
                        pad.select(self._dragged(gr), [image], corners, api_visibility="private").then(
                            in_words(self.describe), [image, *corners], [outlined, text], api_visibility="private"
                        )
                    with gr.Tab("Feature map"):
                        near = gr.Textbox(label="Phrase for the heat map (optional)", max_length=LETTERS)
                        button = gr.Button("Draw", variant="primary")
                        with gr.Row():
                            colours = gr.Image(
                                label="Principal components", interactive=False, buttons=[], format="png"
                            )
                            heat = gr.Image(label="Near the phrase", interactive=False, buttons=[], format="png")
                        connect(button.click, self.features, [image, near], [colours, heat])
                        connect(near.submit, self.features, [image, near], [colours, heat], listed=False)
        return blocks

    def _index(self) -> Index:
        if self.index is None:
            raise UserError("there is no folder to search; start the demo with --images FOLDER.")
        return self.index

    def _dragged(self, gr: Any) -> Callable[..., list[float]]:
        def dragged(image: str | None, event: gr.EventData) -> list[float]:
            height, width = read_one(given(image)).shape[1:]
            return [round(share * side, 1) for share, side in zip(event.box, (width, height) * 2, strict=True)]

        return in_words(dragged)


def connect(event: Any, answer: Callable[..., Any], inputs: list[Any], outputs: Any, *, listed: bool = True) -> None:
    """Bind an answer to a button; the API documents it under its own name, unless another button has."""
    event(
        in_words(answer),
        inputs,
        outputs,
        api_name=answer.__name__ if listed else None,
        api_visibility="public" if listed else "private",
    )


def in_words(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The answer, a UserError of which the page shows as a sentence."""
    gr = library()

    @wraps(answer)
    def said(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    return said


def given(image: str | None) -> str:
    """The image's file. Raises UserError where none was given."""
    if image is None:
        raise UserError("give an image first: drop one on the field, or choose a file.")
    return image


def typed(text: str) -> str:
    """The text, one line of it. Raises UserError where none was typed."""
    words = " ".join(text[:LETTERS].split())
    if not words:
        raise UserError("type a text first.")
    return words


def drawn(image: str | None, found: list[Found], *, scores: bool = True) -> Image.Image:
    """The image at the size the page shows, with boxes and their phrases."""
    pixels = read_one(given(image))
    height, width = pixels.shape[1:]
    scale = SHOWN / max(height, width)
    large = functional.resize(pixels, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)
    boxes = [(x1 * scale, y1 * scale, x2 * scale, y2 * scale) for x1, y1, x2, y2 in (one.box for one in found)]
    labels = [f"{one.phrase} {one.score:.2g}" if scores else one.phrase for one in found]
    return draw_boxes(large, boxes, labels, [COLORS[place % len(COLORS)] for place in range(len(found))])


def as_json(found: Found) -> dict[str, Any]:
    return {"phrase": found.phrase, "box": [round(edge, 1) for edge in found.box], "score": round(found.score, 4)}
