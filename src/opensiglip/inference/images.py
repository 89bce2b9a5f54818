"""Images as people have them: files, PIL images, arrays, tensors, one or many."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.images import from_pil, read_image
from opensiglip.errors import UserError

ImageInput = str | Path | Image.Image | np.ndarray | Tensor
ImageInputs = ImageInput | Sequence[ImageInput]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif")


def is_single(images: ImageInputs) -> bool:
    """Is it a single image? A list, a tuple, or an array of four dimensions is a batch."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | Path | Image.Image)


def load_images(images: ImageInputs) -> list[Tensor]:
    """Each image [3, H, W] uint8, upright. Raises UserError naming what can't be read."""
    if isinstance(images, str | Path | Image.Image):
        return [load_image(images)]
    return (
        [load_image(images)]
        if isinstance(images, np.ndarray | Tensor) and images.ndim < 4
        else list(map(load_image, images))
    )


def load_image(image: ImageInput) -> Tensor:
    """A file; a PIL image; an array [H, W] or [H, W, 3] or a tensor [3, H, W], of uint8 -> [3, H, W] uint8.

    Raises UserError.
    """
    if isinstance(image, str | Path):
        path = Path(image).expanduser()
        if not path.is_file():
            raise UserError(f"there is no image {image}; check the path.")
        try:
            return read_image(path)
        except BrokenExample as reason:
            raise UserError(f"{image} is not a readable image ({reason}); give a JPEG, PNG or WebP.") from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise UserError(
                f"an array of {image.dtype} {list(image.shape)} is not an image; give uint8 [height, width, 3] in "
                "0..255."
            )
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        try:
            return from_pil(image)
        except BrokenExample as reason:
            raise UserError(f"this PIL image can't be read ({reason}).") from None
        except (OSError, ValueError) as error:  # a broken file that PIL had not decoded yet, a mode it can't convert
            raise UserError(f"this PIL image can't be read ({error}); give one in RGB.") from None
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        what = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(
            f"{what} is not an image; give a path, a PIL image, an array or a uint8 tensor [3, height, width]."
        )
    return image.cpu()


def find_files(names: Sequence[str]) -> list[Path]:
    """The files of paths, globs and folders (those with an image's suffix), in order, each once. Raises UserError."""
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            some = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        elif path.exists() or not set("*?[") & set(name):
            some = [path]  # what is not there is reported when it is read
        else:
            some = sorted(match for match in matches(path) if match.is_file())
        if not some:
            raise UserError(f"no image in {name}; give image files, a folder of them, or a pattern in quotes.")
        found += some
    return list(dict.fromkeys(found))


def matches(pattern: Path) -> Iterator[Path]:
    """What a pattern such as photos/**/*.jpg stands for."""
    return Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
