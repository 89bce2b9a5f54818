"""One sample to be written: an encoded image and its row of metadata.jsonl."""

import io
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from opensiglip.data.example import BrokenExample, Example, Source
from opensiglip.data.sources.cleaned import Cleaned
from opensiglip.data.sources.images import MAX_PIXELS, known_formats
from opensiglip.data.sources.metadata import ABOUT, NOTHING
from opensiglip.data.sources.row import plain_row

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
EXTENSIONS |= {"AVIF": "avif", "HEIF": "heic"}


@dataclass(frozen=True)
class Picture:
    """How images are written: as they are, or their shorter side made `side` pixels and encoded as JPEG."""

    side: int | None = None
    quality: int = 90


@dataclass(frozen=True)
class Record:
    """An image's file, what its name ends in, and its row; `lost` counts columns that can't be written."""

    image: bytes
    extension: str
    row: dict[str, Any]
    lost: Counter[str]


def record_of(source: Source, index: int, picture: Picture) -> Record:
    """Example `index` of a source. Its image is decoded, so that none is written that can't be read.

    Raises BrokenExample.
    """
    example = source.example(index)
    row, lost = plain_row(example)
    if isinstance(source, Cleaned):
        lost.update(source.latest)
    if not row.keys() - {"key"} - ABOUT:
        raise BrokenExample(NOTHING)
    height, width = example.image.shape[1:]
    if picture.side is not None:
        smaller = resized(example.image, picture.side)
        resize_row(row, smaller.shape[2] / width, smaller.shape[1] / height)
        image, extension = jpeg(smaller, picture.quality), "jpg"
        height, width = smaller.shape[1:]
    else:
        image, extension = as_it_is(source, index, example)
    return Record(image, extension, row | {"width": width, "height": height}, lost)


def as_it_is(source: Source, index: int, example: Example) -> tuple[bytes, str]:
    """The file of an image, or a PNG of its pixels where it has none; and what its name ends in."""
    data = source.encoded(index)
    extension = None if data is None else extension_of(data)
    if data is None or extension is None:
        return png(example.image), "png"
    return data, extension


def extension_of(data: bytes) -> str | None:
    """What the name of an image's file ends in; None for a format that tars of images do not hold.

    Raises BrokenExample for what is no image, or too large a one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=known_formats(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BrokenExample(f"image over {MAX_PIXELS // 1_000_000} megapixels")
                return EXTENSIONS.get(image.format or "")
    except BrokenExample:
        raise
    except Exception:  # decoders raise all sorts over hostile bytes
        raise BrokenExample("image can't be decoded") from None


def resized(image: Tensor, side: int | None) -> Tensor:
    """The image [3, H, W] with its shorter side made so many pixels; a smaller one as it is."""
    height, width = image.shape[1:]
    if side is None or min(height, width) <= side:
        return image
    scale = side / min(height, width)
    return functional.resize(image, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)


def png(image: Tensor) -> bytes:
    """The pixels [3, H, W] uint8 without loss."""
    file = io.BytesIO()
    functional.to_pil_image(image).save(file, "PNG", compress_level=3)
    return file.getvalue()


def jpeg(image: Tensor, quality: int) -> bytes:
    """The pixels [3, H, W] uint8 as JPEG."""
    file = io.BytesIO()
    functional.to_pil_image(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def resize_row(row: dict[str, Any], across: float, down: float) -> None:
    """Move boxes and outlines of a row to an image made so much wider and higher."""
    factors = (across, down, across, down)
    for item in row.get("regions", ()):
        item["bbox"] = [edge * factor for edge, factor in zip(item["bbox"], factors, strict=True)]
    if isinstance(row.get("masks"), list):
        row["masks"] = [
            mask | {"polygons": [[x * factors[at % 2] for at, x in enumerate(loop)] for loop in mask["polygons"]]}
            for mask in row["masks"]
        ]
