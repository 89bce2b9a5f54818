"""Maps over an image as pictures: colours of patches, numbers of patches or pixels, classes of pixels."""

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional

from opensiglip.float64 import widen
from opensiglip.reports.drawing import caption_strip, font


def colour_map(colours: Tensor, size: int) -> Image.Image:
    """rgb [h, w, 3] in 0..1 as a picture whose longer side is `size` pixels, each patch one square."""
    pixels = (colours.permute(2, 0, 1) * 255).round().to(torch.uint8).cpu()
    sides = [round(count * size / max(colours.shape[:2])) for count in colours.shape[:2]]
    nearest = functional.InterpolationMode.NEAREST
    return functional.to_pil_image(functional.resize(pixels, sides, interpolation=nearest))


def heat_map(image: Tensor, values: Tensor) -> Image.Image:
    """The image [3, H, W] uint8 under the values [h, w] of its patches or pixels.

    Dark is least, bright is greatest of this image's values, so two images' colours can't be compared without their
    ranges (`scaled_map`, `range_text`).
    """
    low, high = values.min(), values.max()
    scaled = ((values - low) / (high - low).clamp(min=1e-12)).float()[None, None].cpu()
    if values.shape != image.shape[1:]:
        scaled = F.interpolate(scaled, tuple(image.shape[1:]), mode="bicubic").clamp(0, 1)
    heat = matplotlib.colormaps["inferno"](scaled[0, 0].numpy())[..., :3] * 255
    blended = 0.45 * image.permute(1, 2, 0).cpu().numpy() + 0.55 * heat
    return Image.fromarray(blended.round().astype(np.uint8))


def scaled_map(picture: Image.Image, values: Tensor) -> Image.Image:
    """A heat map above its scale: the colours from dark to bright, and the least and the greatest value."""
    width, size = picture.width, max(10, picture.width // 20)
    ramp = matplotlib.colormaps["inferno"](np.linspace(0, 1, width))[None, :, :3] * 255
    bar = Image.fromarray(ramp.round().astype(np.uint8)).resize((width, size), Image.Resampling.NEAREST)
    words = caption_strip(f"{float(values.min()):.2f}", width, size=size, lines=1)
    most = f"{float(values.max()):.2f}"
    ImageDraw.Draw(words).text((width - font(size).getlength(most), 0), most, fill="black", font=font(size))
    whole = Image.new("RGB", (width, picture.height + bar.height + words.height))
    for part, top in ((picture, 0), (bar, picture.height), (words, picture.height + bar.height)):
        whole.paste(part, (0, top))
    return whole


def range_text(values: Tensor) -> str:
    """What dark and bright stand for in a heat map of the values: "0.02 – 0.31"."""
    return f"{float(values.min()):.2f} – {float(values.max()):.2f}"


def class_map(classes: Tensor) -> Image.Image:
    """Classes [H, W] int64: 0 white, below 0 grey, each other number in a colour of its own."""
    hues = (widen(classes) * 0.61803398875) % 1  # neighbouring numbers far apart
    colours = torch.from_numpy(matplotlib.colormaps["hsv"](hues.numpy()))[..., :3] * 0.85
    colours[classes == 0], colours[classes < 0] = 1.0, 0.6
    return Image.fromarray((255 * colours).to(torch.uint8).numpy())
