"""The tensors of a tower and a decoder that depend on the size of images and patches, resized to another one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.float64 import widen, widest

TOWERS = ("vision.tower.", "teacher.copy.tower.")  # as a model names its image tower, and a learner the teacher's
POSITIONS = (*(f"{tower}embeddings.position_embedding.weight" for tower in TOWERS), "decoder.image_position")
PATCHES = tuple(f"{tower}embeddings.patch_embedding.weight" for tower in TOWERS)
LENGTHS = ("text.tower.embeddings.position_embedding.weight", "text.position", "decoder.position")  # one for each token
KEPT = 20  # positions of a text that stay when it grows; most captions have no more tokens (Long-CLIP, Sec. 3.2)
CONVOLUTION = 4  # dimensions of a patch embedding; NaFlex has it as a matrix [D, p * p * 3], of columns y, x, colour


def resize_tensor(name: str, tensor: Tensor, like: Tensor, *, corner_aligned: bool = False) -> Tensor:
    """A tensor of a model in the shape of `like`: for another image size, patch size or layout of its patch embedding.

    Any tensor that these rules do not speak of comes back as it is. `corner_aligned` as in `resize_positions`.
    """
    if name.endswith(POSITIONS) and tensor.shape[1:] == like.shape[1:]:
        side = math.isqrt(len(like))
        return resize_positions(tensor, side, side, corner_aligned=corner_aligned)
    if name.endswith(PATCHES) and len(tensor) == len(like):
        kernel = tensor
        if kernel.ndim != CONVOLUTION:
            side = math.isqrt(kernel.shape[1] // 3)
            kernel = kernel.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
        kernel = resize_patches(kernel, math.isqrt(like[0].numel() // 3))
        return kernel if like.ndim == CONVOLUTION else kernel.permute(0, 2, 3, 1).flatten(1)
    return tensor


def resize_positions(table: Tensor, height: int, width: int, *, corner_aligned: bool = False) -> Tensor:
    """Learned positions [side * side, D] as [height * width, D], bilinear.

    By default as NaFlex has them: pixels are areas, and antialiased where there are fewer (SigLIP 2, Sec. 2.4.2).
    `corner_aligned`: the first and last points stay and the others lie evenly between, which is
    `scipy.ndimage.zoom(order=1)`: as big_vision resizes checkpoints of fixed resolution (models/vit.py,
    `resample_posemb`). transformers' v1 towers are bicubic.
    """
    side = int(len(table) ** 0.5)
    if (height, width) == (side, side):
        return table
    grid = table.to(torch.promote_types(table.dtype, torch.float32)).unflatten(0, (1, side, side)).permute(0, 3, 1, 2)
    how = {"align_corners": True} if corner_aligned else {"align_corners": False, "antialias": True}
    resized = F.interpolate(grid, size=(height, width), mode="bilinear", **how)
    return resized.flatten(2).mT[0].to(table.dtype)


def stretch_positions(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """A text's learned positions [L, D] for more tokens, as `like` has them; any other tensor as it is.

    The first `KEPT` stay, and so does the last, which SigLIP pools; between, they are linear in the old ones.
    (Long-CLIP, arXiv:2403.15378)
    """
    if not name.endswith(LENGTHS) or tensor.shape[1:] != like.shape[1:] or not 2 <= len(tensor) < len(like):
        return tensor
    kept = kept_places(len(tensor))
    tail = tensor[kept:].to(torch.promote_types(tensor.dtype, torch.float32)).T[None]
    tail = F.interpolate(tail, size=len(like) - kept, mode="linear", align_corners=True)
    return torch.cat([tensor[:kept], tail[0].T.to(tensor.dtype)])


def kept_places(length: int) -> int:
    """How many first positions of a text of `length` tokens stay when it grows."""
    return min(KEPT, length - 2)


def text_places(count: int, positions: int, device: torch.device) -> Tensor:
    """Which of a text tower's learned positions a text of `count` tokens has [count] int64: the first, and the last.

    The last place pools, so it keeps its position, as `stretch_positions` has it for longer texts.
    """
    places = torch.arange(count, device=device)
    places[-1] = positions - 1
    return places


def resize_patches(kernel: Tensor, side: int) -> Tensor:
    """A patch embedding's kernel [D, C, p, p] for patches of `side` pixels, by FlexiViT's pseudo-inverse.

    w' = (B^T)^+ w, where the p^2 x side^2 matrix B^T resizes patches bilinearly: of all kernels the one that gives
    resized patches the embeddings of the patches themselves; exactly so where patches grow, and where they shrink for
    those that lose nothing.    (FlexiViT, arXiv:2212.08013, Sec. 3.4; big_vision models/proj/flexi/vit.py:30-75)
    """
    old = kernel.shape[-1]
    if old == side:
        return kernel
    pixels = torch.eye(old * old, dtype=widest(kernel.device), device=kernel.device).unflatten(1, (1, old, old))
    resize = F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False).flatten(1)  # B^T
    resized = widen(kernel).flatten(2) @ torch.linalg.pinv(resize).T
    return resized.unflatten(-1, (side, side)).to(kernel.dtype)
