"""Images with boxes and their names on them, captions under them, and data URIs of them."""

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional

from opensiglip.data.example import Box

# Okabe and Ito's eight without yellow, which is too pale to read on: told apart by colour-blind eyes as well.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TARGET, PREDICTED = COLORS[1], COLORS[0]  # in every picture and page
SIDE = 352  # pixels a picture of a page is drawn at: boxes on an image of 64 would hide it
# PIL's own font has English letters only; matplotlib's covers the Latin, Greek, Cyrillic and Arabic scripts.
FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)


@cache
def letters() -> frozenset[str]:
    return frozenset(map(chr, FT2Font(str(FONT)).get_charmap()))


def can_draw(text: str) -> bool:
    """Has the font every letter of the text? Chinese, Japanese, Korean and Thai it has not."""
    return letters().issuperset(text)


def draw_boxes(image: Tensor, boxes: Sequence[Box], labels: Sequence[str], colors: Sequence[str]) -> Image.Image:
    """The image [3, H, W] uint8 with each box (pixels) outlined, and its label on the upper left corner.

    Labels are moved to stay on the image; an empty label draws none.
    """
    picture = functional.to_pil_image(image)
    draw = ImageDraw.Draw(picture)
    size = max(10, min(picture.size) // 22)
    for box, color in zip(boxes, colors, strict=True):
        draw.rectangle(box, outline=color, width=max(1, size // 5))
    for box, label, color in zip(boxes, labels, colors, strict=True):  # after all boxes, so that none crosses a label
        if label := fit(label, size, picture.width):
            width, height = font(size).getlength(label), round(1.2 * size)
            left = max(0, min(box[0], picture.width - width))
            top = max(0, min(box[1], picture.height - height))
            draw.rectangle((left, top, left + width, top + height), fill=color)
            draw.text((left, top), label, fill="white", font=font(size))
    return picture


def draw_outline(image: Tensor, points: Sequence[tuple[float, float]]) -> Tensor:
    """The image [3, H, W] uint8 with a closed line through the points x, y; none without points."""
    if not points:
        return image
    picture = functional.to_pil_image(image)
    width = max(1, min(picture.size) // 100)
    ImageDraw.Draw(picture).line([*points, points[0]], fill=PREDICTED, width=width, joint="curve")
    return functional.pil_to_tensor(picture)


def caption_strip(text: str, width: int, *, size: int = 12, lines: int = 3) -> Image.Image:
    """The text in black on white, `width` pixels wide and `lines` lines high; what does not fit is cut with "…"."""
    strip = Image.new("RGB", (width, round(1.3 * size) * lines), "white")
    draw = ImageDraw.Draw(strip)
    words = text.split()
    for line in range(lines):
        count = len(words) if line == lines - 1 else fitting(words, size, width)
        draw.text(
            (0, line * round(1.3 * size)), fit(" ".join(words[:count]), size, width), fill="black", font=font(size)
        )
        words = words[count:]
    return strip


def fitting(words: Sequence[str], size: int, width: int) -> int:
    """How many of the words fit on a line; at least one, so that a line is never stuck."""
    count = 1
    while count < len(words) and font(size).getlength(" ".join(words[: count + 1])) <= width:
        count += 1
    return count


def fit(text: str, size: int, width: int) -> str:
    """The text on one line, cut with "…" to be at most `width` pixels wide."""
    text = " ".join(text.split())[:width]  # no letter is narrower than a pixel: a bound on what is measured below
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def coloured(targets: Sequence[Box], predicted: Sequence[Box]) -> list[tuple[Box, str]]:
    """The targets' boxes and the model's, each with its colour."""
    return [(box, TARGET) for box in targets] + [(box, PREDICTED) for box in predicted]


def enlarged(image: Tensor, boxes: Sequence[tuple[Box, str]], side: int) -> Image.Image:
    """The image [3, H, W], its longer side `side` pixels, with boxes in their colours."""
    scale = side / max(image.shape[-2:])
    size = [max(1, round(length * scale)) for length in image.shape[-2:]]
    large = functional.resize(image, size, interpolation=functional.InterpolationMode.BICUBIC, antialias=True)
    places: list[Box] = [(a * scale, b * scale, c * scale, d * scale) for (a, b, c, d), _ in boxes]
    return draw_boxes(large, places, [""] * len(places), [color for _, color in boxes])


def as_uri(image: Tensor, boxes: Sequence[tuple[Box, str]] = (), side: int = SIDE, quality: int = 90) -> str:
    """`enlarged` as a data URI of a JPEG."""
    return jpeg_uri(enlarged(image, boxes, side), quality)


def jpeg_uri(picture: Image.Image, quality: int = 90) -> str:
    """The picture as a data URI."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
