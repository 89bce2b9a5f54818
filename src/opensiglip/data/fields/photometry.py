"""How views of an image are changed for self-distillation: flip, colours, blur, solarization; many views at once.

SILC's photometric augmentations are not established; these are DINOv2's (data/augmentations.py:43-94). Colours are
torchvision's functions on float32 in [0, 1], to 1e-6, and are rounded to uint8 once, at the end.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FLIP, JITTER, GREY = 0.5, 0.8, 0.2  # how likely
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1  # how much
SIGMA, KERNEL = (0.1, 2.0), 9  # of the blur, in pixels of a view of `side`
SOLARIZE_FROM = 128  # of 255: values from here on are turned round
DRAWS = 10  # random numbers of a view, whatever happens
STEEP = 1e30  # times any difference of two values is more than 1
WEIGHTS = 0.2989, 0.587, 0.114  # of red, green and blue in grey    (ITU-R BT.601; torchvision)


class Photometry(NamedTuple):
    """How likely one kind of view is blurred and solarized; `side`: of DINOv2's views of that kind, in pixels."""

    blur: float
    solarize: float
    side: int


FIRST_GLOBAL, OTHER_GLOBAL, LOCAL = Photometry(1.0, 0.0, 224), Photometry(0.1, 0.2, 224), Photometry(0.5, 0.0, 96)


def augment(images: Tensor, kinds: Sequence[Photometry], draws: np.ndarray) -> Tensor:
    """Views [V, 3, S, S] uint8, each of its kind, by `draws` [V, 10] in [0, 1), of which each view has its own.

    The jitter's four steps keep one order, where torchvision's ColorJitter shuffles them.
    """
    flip, jitter, grey, blur, solarize, *amounts, sigma = draws.T
    x = images.to(torch.float32).div_(255)
    for some, change, numbers in (
        (flip < FLIP, flipped, []),
        (jitter < JITTER, jittered, amounts),
        (grey < GREY, without_colour, []),
        (blur < [kind.blur for kind in kinds], blurred, [sigma, np.array([kind.side for kind in kinds])]),
        (solarize < [kind.solarize for kind in kinds], solarized, []),
    ):
        if some.all():
            x = change(x, *numbers)
        elif some.any():
            places = torch.from_numpy(some.nonzero()[0])
            x[places] = change(x[places], *(one[some] for one in numbers))
    return torch.from_numpy(x.mul_(255).round_().numpy().astype(np.uint8))  # six times as fast as torch's


def flipped(x: Tensor) -> Tensor:
    """Left and right exchanged."""
    return x.flip(-1)


def jittered(x: Tensor, *amounts: np.ndarray) -> Tensor:
    """Brightness, contrast, saturation and hue changed, each by its amounts [V] in [0, 1) of the range."""
    brightness, contrast, saturation, hue = (2 * amount - 1 for amount in amounts)
    x = adjust_brightness(x, _each(1 + BRIGHTNESS * brightness))
    x = adjust_contrast(x, _each(1 + CONTRAST * contrast))
    x = adjust_saturation(x, _each(1 + SATURATION * saturation))
    return adjust_hue(x, _each(HUE * hue))


def without_colour(x: Tensor) -> Tensor:
    """Grey in all three channels."""
    return _grey(x).expand_as(x).contiguous()


def blurred(x: Tensor, sigma: np.ndarray, side: np.ndarray) -> Tensor:
    """Blurred by `sigma` [V] in [0, 1) of the range, in proportion to DINOv2's `side` [V] in pixels, all equal."""
    scale = x.shape[-1] / float(side[0])
    reach = max(1, round((KERNEL // 2) * scale))
    return gaussian_blur(x, reach, _each(scale * (SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma)))


def solarized(x: Tensor) -> Tensor:
    """Bright values turned round."""
    return torch.where(x >= SOLARIZE_FROM / 255, 1 - x, x)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Views [V, 3, H, W] in [0, 1], multiplied by `factor` [V, 1, 1, 1]; in place."""
    return x.mul_(factor).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Views spread about their mean grey; in place."""
    mean = _grey(x).mean((1, 2, 3), keepdim=True, dtype=torch.float64)  # so that threads leave no trace in float32
    return x.mul_(factor).add_((1 - factor) * mean.to(x.dtype)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Views spread about their own grey; in place."""
    grey = _grey(x).mul_(1 - factor)
    return x.mul_(factor).add_(grey).clamp_(0, 1)


def adjust_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Views whose hue is turned by `turn` [V, 1, 1, 1] of the circle, at most half of it; in place.

    A channel is the least of the three plus their range times how near the hue is to that colour: 1 up to a sixth of
    the circle away from it, 0 from two sixths on. So the way over HSV's six cases is not needed.
    """
    most, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    extent = most - least
    inverse = extent.clamp(min=torch.finfo(x.dtype).tiny).reciprocal_()
    of_blue = (red - green).mul_(inverse).add_(4)
    of_green = (blue - red).mul_(inverse).add_(2)
    of_red = (green - blue).mul_(inverse)
    # 0 where that colour is the most, else 1: a tenth of the time of a comparison and `torch.where`.
    not_green, not_red = ((most - colour).mul_(STEEP).clamp_(0, 1) for colour in (green, red))
    hue = torch.lerp(of_red, torch.lerp(of_green, of_blue, not_green), not_red).add_(6 * turn)
    away = hue - torch.tensor([0.0, 2.0, 4.0]).view(1, 3, 1, 1)  # in sixths, at most 6: |3 - |3 - away|| on the circle
    near = away.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
    return near.mul_(extent).add_(least)


def gaussian_blur(x: Tensor, reach: int, sigma: Tensor) -> Tensor:
    """Views blurred by `sigma` [V, 1, 1, 1], along each axis over `reach` pixels to both sides, mirrored at edges."""
    place = torch.arange(-float(reach), reach + 1)
    weights = torch.exp(-0.5 * (place / sigma[:, 0, 0]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True))[..., None, None, None]  # [V, taps, 1, 1, 1]
    for pads, axis in (((reach, reach, 0, 0), 3), ((0, 0, reach, reach), 2)):
        padded, size = F.pad(x, pads, "reflect"), x.shape[axis]
        x = padded.narrow(axis, 0, size) * weights[:, 0]
        for tap in range(1, 2 * reach + 1):
            x.addcmul_(padded.narrow(axis, tap, size), weights[:, tap])
    return x


def _each(values: np.ndarray) -> Tensor:
    """[V] as [V, 1, 1, 1]."""
    return torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def _grey(x: Tensor) -> Tensor:
    """[V, 1, H, W]."""
    red, green, blue = x.split(1, 1)
    return (red * WEIGHTS[0]).add_(green, alpha=WEIGHTS[1]).add_(blue, alpha=WEIGHTS[2])
