"""Views of self-distillation from decoded images: ours, and torchvision's functions on one uint8 view at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from opensiglip.data.example import Example
from opensiglip.data.fields import photometry
from opensiglip.data.fields.field import Visit
from opensiglip.data.fields.photometry import Photometry
from opensiglip.data.fields.views import Views, crop
from opensiglip.data.text import TextPipeline

PATCH = 16


def own_views(images: Sequence[Tensor], resolution: int) -> None:
    """As the loader draws them."""
    field, pipeline = Views(resolution, PATCH), TextPipeline.__new__(TextPipeline)  # which is not read
    for place, image in enumerate(images):
        field.draw(Visit(Example(image, ()), image, (), None), np.random.default_rng(place), pipeline)


def torchvision_views(images: Sequence[Tensor], resolution: int) -> None:
    """The same views, each for itself."""
    field = Views(resolution, PATCH)
    (whole, local), (wide, narrow) = field.sides, field.areas
    for place, image in enumerate(images):
        rng = np.random.default_rng(place)
        one(crop(image, whole, wide, rng), photometry.FIRST_GLOBAL, rng.random(photometry.DRAWS))
        torch.stack(
            [one(crop(image, local, narrow, rng), photometry.LOCAL, rng.random(photometry.DRAWS)) for _ in range(8)]
        )


def one(image: Tensor, kind: Photometry, draws: np.ndarray) -> Tensor:
    """A view [3, S, S] uint8 with `photometry.augment`'s chances and amounts."""
    flip, jitter, grey, blur, solarize, *amounts, sigma = draws.tolist()
    brightness, contrast, saturation, hue = (2 * amount - 1 for amount in amounts)
    if flip < photometry.FLIP:
        image = transform.horizontal_flip(image)
    if jitter < photometry.JITTER:
        image = transform.adjust_brightness(image, 1 + photometry.BRIGHTNESS * brightness)
        image = transform.adjust_contrast(image, 1 + photometry.CONTRAST * contrast)
        image = transform.adjust_saturation(image, 1 + photometry.SATURATION * saturation)
        image = transform.adjust_hue(image, photometry.HUE * hue)
    if grey < photometry.GREY:
        image = transform.rgb_to_grayscale(image, num_output_channels=3)
    if blur < kind.blur:
        scale, (low, high) = image.shape[-1] / kind.side, photometry.SIGMA
        kernel = max(3, 2 * round((photometry.KERNEL // 2) * scale) + 1)
        image = transform.gaussian_blur(image, [kernel] * 2, [scale * (low + (high - low) * sigma)] * 2)
    if solarize < kind.solarize:
        image = transform.solarize(image, photometry.SOLARIZE_FROM)
    return image
