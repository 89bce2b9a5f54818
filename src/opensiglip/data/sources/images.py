"""An image as pixels, the same from a file as from a PIL image: [3, H, W] uint8, RGB, upright."""

import importlib
import importlib.util
import io
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import decode_image
from torchvision.transforms.v2 import functional

from opensiglip.data.example import BrokenExample

MAX_PIXELS = 64_000_000
MAX_BYTES = 4 * MAX_PIXELS  # a file bigger than its pixels holds something else
# What PIL may open: its other formats are rare here, and some start programs or unpack without bound.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's markers of a frame
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of ISO/IEC 23008-12


def read_image(path: Path) -> Tensor:
    """The image of a file: [3, H, W] uint8, upright, of an animation the first frame. Raises BrokenExample."""
    return decode_image_bytes(read_file(path))


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises BrokenExample where it is not there or holds more than an image."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BrokenExample(f"image file over {MAX_BYTES // 1_000_000} MB")
        return path.read_bytes()
    except OSError:
        raise BrokenExample("image can't be decoded") from None


def decode_image_bytes(data: bytes) -> Tensor:
    """The image that a file's bytes hold: [3, H, W] uint8, upright. Raises BrokenExample.

    torchvision decodes JPEG and PNG in colour or grey, PIL the rest; the header's size is read before any pixel is.
    """
    try:
        size = jpeg_size(data)
        if size is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL's remarks on odd metadata, and on sizes: ours is the bound
                with Image.open(io.BytesIO(data), formats=known_formats(data)) as image:
                    check_pixels(image.width * image.height)
                    if image.format not in ("JPEG", "MPO", "PNG") or image.mode not in ("RGB", "L"):
                        return from_pil(image)
        else:
            check_pixels(size[0] * size[1])
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels = decode_image(encoded, mode="RGB", apply_exif_orientation=True)
        if pixels.dtype == torch.uint8:
            return pixels
        return functional.to_dtype(pixels, torch.uint8, scale=True)  # a PNG of 16 bits; the upper 8 are kept
    except Image.DecompressionBombError:
        raise BrokenExample(f"image over {MAX_PIXELS // 1_000_000} megapixels") from None
    except BrokenExample:
        raise
    except Exception:  # decoders raise all sorts over hostile bytes
        raise BrokenExample("image can't be decoded") from None


def blank(height: int, width: int) -> Tensor:
    """An image of that size without pixels of its own: [3, H, W] uint8, one byte of memory."""
    return torch.zeros(1, dtype=torch.uint8).expand(3, height, width)


def check_pixels(count: int) -> None:
    """Raises PIL's DecompressionBombError for more pixels than an image may have."""
    if count > MAX_PIXELS:
        raise Image.DecompressionBombError


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG of 8 bits in grey or three colours, by its frame header (ISO/IEC 10918-1, B.2.2).

    None where that is not what comes first; PIL then says what it is. PIL's own reading takes a tenth of a decode.
    """
    at = 2 if data[:3] == b"\xff\xd8\xff" else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in FRAMES:
            bits, height, width, colours = struct.unpack_from(">BHHB", data, at + 4)
            return (height, width) if bits == 8 and height and width and colours in (1, 3) else None
        if not 0xC4 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA:  # no segment, or pixels before a frame
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def from_pil(image: Image.Image) -> Tensor:
    """A PIL image of any mode: [3, H, W] uint8, upright. Transparency is left out, of 16 bits the upper 8 are kept.

    Raises BrokenExample for floats and 32-bit integers, whose black and white nothing says.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = torch.from_numpy((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
        return grey.expand(3, -1, -1).contiguous()
    if image.mode in ("I", "F"):
        raise BrokenExample("image of 32 bits a channel: save it with 8 or 16")
    return functional.pil_to_tensor(image.convert("RGB"))


def known_formats(data: bytes) -> tuple[str, ...]:
    """What PIL may take these bytes for. Raises BrokenExample for HEIC where nothing here reads it."""
    if data[4:8] != b"ftyp" or data[8:12] not in HEIC or b"avif" in data[8:64]:
        return FORMATS
    if importlib.util.find_spec("pillow_heif") is None:
        raise BrokenExample("HEIC image: pip install pillow-heif, or save it as JPEG")
    importlib.import_module("pillow_heif").register_heif_opener()
    return ("HEIF",)
