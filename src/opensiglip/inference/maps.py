"""Maps of an image's patches as pictures: their colours, and how near each is to a text."""

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional


def colour_map(colours: Tensor, size: int) -> Image.Image:
    """rgb [h, w, 3] in 0..1 as a picture whose longer side is `size` pixels, each patch one square."""
    pixels = (colours.permute(2, 0, 1) * 255).round().to(torch.uint8).cpu()
    sides = [round(count * size / max(colours.shape[:2])) for count in colours.shape[:2]]
    nearest = functional.InterpolationMode.NEAREST
    return functional.to_pil_image(functional.resize(pixels, sides, interpolation=nearest))


def heat_map(image: Tensor, similarity: Tensor) -> Image.Image:
    """The image [3, H, W] uint8 under the similarities [h, w] of its patches.

    Dark is farthest, bright is nearest of this image's patches: two images' colours can't be compared.
    """
    low, high = similarity.min(), similarity.max()
    scaled = ((similarity - low) / (high - low).clamp(min=1e-12)).float()[None, None].cpu()
    smooth = F.interpolate(scaled, tuple(image.shape[1:]), mode="bicubic").clamp(0, 1)[0, 0]
    heat = matplotlib.colormaps["inferno"](smooth.numpy())[..., :3] * 255
    blended = 0.45 * image.permute(1, 2, 0).cpu().numpy() + 0.55 * heat
    return Image.fromarray(blended.round().astype(np.uint8))
