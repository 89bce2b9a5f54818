"""The demo's answers, one method a button: strings and files in, pictures, texts and JSON out."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from opensiglip.apps.demo.labels import labels_table
from opensiglip.data.boxes import Point
from opensiglip.data.example import Box
from opensiglip.data.tasks import spelled
from opensiglip.errors import UserError
from opensiglip.inference.answers import Found
from opensiglip.inference.capabilities import trained_tasks
from opensiglip.inference.images import load_image
from opensiglip.inference.predictor import Predictor
from opensiglip.inference.search import Hit, Searchable
from opensiglip.reports.drawing import COLORS, draw_boxes, draw_outline
from opensiglip.reports.maps import colour_map, heat_map, scaled_map
from opensiglip.reports.patch_colours import pca_colours

SHOWN = 640  # pixels of the longer side of a picture on the page
LETTERS = 2_000  # of a text that is typed
FILE = 20_000_000  # bytes of an image's file; what it unpacks to is bounded when it is read
EXAMPLES = 8  # of the folder, below the image
THUMBNAIL = 256  # pixels of the longer side of a search's hit


class Page:
    """The page's answers, one method a button; what goes wrong is shown in words."""

    def __init__(self, predictor: Predictor, index: Searchable | None = None) -> None:
        self.predictor, self.index = predictor, index

    def classify(self, image: str | None, labels: str) -> tuple[str, dict[str, float]]:
        """The probability of each label, one per line or separated by commas: a table in HTML, and numbers."""
        names = [name.strip() for name in labels[:LETTERS].replace("\n", ",").split(",") if name.strip()]
        if not names:
            raise UserError("type labels, one per line or separated by commas.")
        found = self.predictor.classify(opened(image), names)
        table = labels_table(found, own=self.predictor.logit_bias is not None)
        return table, {label: float(f"{one:.4g}") for label, one in found.items()}

    def examples(self) -> list[Path]:
        """Images of the folder to begin with, evenly spread; none without a folder."""
        files = [] if self.index is None else self.index.files
        count = min(EXAMPLES, len(files))
        return [files[place * len(files) // count] for place in range(count)]

    def search_by_text(self, text: str) -> list[tuple[Image.Image, str]]:
        """The images of the folder that are nearest to a text."""
        return thumbnails(self.predictor.search(self._index(), typed(text)))

    def search_by_image(self, image: str | None) -> list[tuple[Image.Image, str]]:
        """The images of the folder that are nearest to the image."""
        return thumbnails(self.predictor.search(self._index(), image=opened(image)))

    def caption(self, image: str | None, beams: float = 1, language: str | None = None) -> str:
        """What stands on the image; with more than one beam, the likeliest text that a beam search meets.

        A language, such as de, can be chosen of models whose training marked it.
        """
        return self.predictor.caption(opened(image), language=language or None, num_beams=max(1, min(8, int(beams))))

    def locate(self, image: str | None, phrase: str) -> tuple[Image.Image, dict[str, Any]]:
        """The image with the box of the phrase drawn, and the box x1, y1, x2, y2 in pixels with its score."""
        pixels = opened(image)
        found = self.predictor.locate(pixels, typed(phrase))
        return drawn(pixels, scored([found])), found.as_json()

    def propose(self, image: str | None) -> tuple[Image.Image, list[dict[str, Any]]]:
        """The image with phrases and boxes that the model finds by itself."""
        pixels = opened(image)
        found = self.predictor.propose(pixels)
        return drawn(pixels, scored(found)), [one.as_json() for one in found]

    def ask(self, image: str | None, question: str) -> tuple[str, Image.Image, Any]:
        """The answer to a question in the words of a task of the model's training: its text, places and meaning."""
        pixels = opened(image)
        answer = self.predictor.ask(pixels, typed(question))
        return answer.text, drawn(pixels, answer.boxes, answer.outline), answer.as_json()["value"]

    def describe(self, image: str | None, x1: float, y1: float, x2: float, y2: float) -> tuple[Image.Image, str]:
        """What stands in the box x1, y1, x2, y2, in pixels of the image."""
        if None in (x1, y1, x2, y2):
            raise UserError("give all four corners of the box, or drag it on the image.")
        pixels = opened(image)
        text = self.predictor.describe(pixels, (x1, y1, x2, y2))
        return drawn(pixels, [(text, (x1, y1, x2, y2))]), text

    def features(self, image: str | None, phrase: str = "") -> tuple[Image.Image, Image.Image | None]:
        """The patch tokens' first principal components as colours; with a phrase, how near each patch is to it.

        Nearer than to an empty text: what all texts share is nearest to the ground.    (after CLIP Surgery, ours)
        """
        pixels = opened(image)
        tokens = self.predictor.features([pixels])
        colours = colour_map(pca_colours([tokens[0]])[0], SHOWN)
        if not phrase.strip():
            return colours, None
        near, nothing = (self.predictor.similarity([pixels], text)[0] for text in (typed(phrase), ""))
        return colours, scaled_map(heat_map(enlarged(pixels), near - nothing), near - nothing)

    def picture(self, image: str | None) -> str:
        """The image as the page can show it to drag on."""
        if image is None:
            return ""
        file = io.BytesIO()
        drawn(opened(image), []).save(file, "JPEG", quality=90)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()

    def abilities(self) -> str:
        """What this model can do, in a sentence."""
        model = self.predictor
        captions = bool({"cap", "caption"} & set(model.tasks))
        can = {
            "classify": model.has_text or captions,
            "caption": captions,
            "locate, propose": "aref" in model.tasks,
            "describe a box": "gcap" in model.tasks,
            "search by text": model.has_text,
        }
        able = ", ".join([words for words, so in can.items() if so] + ["search by image"])
        return f"**{html.escape(model.name)}** can {able} and draw its features."

    def questions(self) -> str:
        """The questions that this model was trained on, what is to be filled in in capitals."""
        known = [f'"{spelled(task)}"' for task in trained_tasks(self.predictor.pretrained)]
        return f"In the form of a trained task: {', '.join(known)}." if known else "This model was trained on no task."

    def languages(self) -> list[str]:
        """Those that a caption can be asked for in; none where there is no choice."""
        model = self.predictor
        return list(model.languages) if "caption" in model.tasks else []

    def _index(self) -> Searchable:
        if self.index is None:
            raise UserError("there is no folder to search; start the demo with --images FOLDER.")
        return self.index


def opened(image: str | None) -> Tensor:
    """The image [3, h, w] uint8 of an uploaded file. Raises UserError where none was given, or it can't be read."""
    if image is None:
        raise UserError("give an image first: drop one on the field, or choose a file.")
    path = Path(image)
    try:
        size = path.stat().st_size
    except OSError:
        raise UserError("the image is no longer here (uploads are kept for an hour); give it again.") from None
    if size > FILE:
        raise UserError(f"{path.name} has {size / 1e6:.1f} MB; the page takes {FILE // 1_000_000}, make it smaller.")
    try:
        return load_image(path)
    except UserError as error:
        raise UserError(str(error).replace(image, path.name)) from None


def typed(text: str) -> str:
    """The text, one line of it. Raises UserError where none was typed."""
    words = " ".join(text[:LETTERS].split())
    if not words:
        raise UserError("type a text first.")
    return words


def scored(found: Sequence[Found]) -> list[tuple[str, Box]]:
    """Boxes under their phrases with the scores."""
    return [(f"{one.phrase} {one.score:.2g}", one.box) for one in found]


def drawn(image: Tensor, boxes: Sequence[tuple[str, Box]], outline: Sequence[Point] = ()) -> Image.Image:
    """The image at the size the page shows, with boxes under their names, and an outline."""
    scale = SHOWN / max(image.shape[1:])
    outlined = draw_outline(enlarged(image), [(x * scale, y * scale) for x, y in outline])
    scaled = [(x1 * scale, y1 * scale, x2 * scale, y2 * scale) for _, (x1, y1, x2, y2) in boxes]
    colors = [COLORS[place % len(COLORS)] for place in range(len(boxes))]
    return draw_boxes(outlined, scaled, [name for name, _ in boxes], colors)


def enlarged(image: Tensor) -> Tensor:
    """The image [3, h, w] uint8 at the size the page shows."""
    height, width = image.shape[1:]
    scale = SHOWN / max(height, width)
    return functional.resize(image, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)


def thumbnails(hits: Sequence[Hit]) -> list[tuple[Image.Image, str]]:
    """A small picture of each, and its name with the score."""
    return [(thumbnail(hit.path), f"{hit.path.name}  {hit.score:.3f}") for hit in hits]


def thumbnail(path: Path) -> Image.Image:
    """A small picture of the image, whole."""
    picture = functional.to_pil_image(load_image(path))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture
