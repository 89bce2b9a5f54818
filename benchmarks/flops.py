"""What a step needs: the products of its networks and losses, in FLOP. Element-wise work and optimizer cost none."""

from opensiglip.models.sizes import Architecture, Shape
from opensiglip.types import Batch

TRAINED = 3  # a product's two gradients are a product each


def tower(shape: Shape, tokens: int) -> float:
    """Forward of one sequence through a transformer: projections, MLP and attention."""
    each = 8 * shape.width**2 + 4 * shape.width * shape.mlp + 4 * tokens * shape.width
    return float(shape.depth * tokens * each)


def image(architecture: Architecture, pixels: int) -> float:
    """Forward of one square image of so many pixels a side, MAP head included where there is a text to compare with."""
    shape, tokens = architecture.vision, (pixels // architecture.patch) ** 2
    pooling = tokens * 4 * shape.width**2 if architecture.text else 0
    return tower(shape, tokens) + tokens * 6 * architecture.patch**2 * shape.width + pooling


def contrastive(architecture: Architecture, images: int) -> float:
    """A step of SigLIP or CLIP: both towers, and the products of image with text embeddings."""
    assert architecture.text is not None
    one = image(architecture, architecture.resolution) + tower(architecture.text, architecture.length)
    return TRAINED * images * (one + 2 * images * architecture.vision.width)


def captions(architecture: Architecture, batch: Batch, vocabulary: int) -> float:
    """Decoder and head of a step on packed rows."""
    assert architecture.decoder is not None
    seen = (architecture.resolution // architecture.patch) ** 2
    return reading(architecture.decoder, architecture.vision.width, seen, batch, vocabulary)


def reading(shape: Shape, memory: int, seen: int, batch: Batch, vocabulary: int) -> float:
    """A decoder on packed rows and so many image tokens: real tokens and parallel rows' [MASK], no padding."""
    rows, tokens = len(batch["inputs"]), int((batch["segments"] >= 0).sum())
    sequence = tokens / max(1, int(batch["sequences"].sum()))
    each = 12 * shape.width**2 + 4 * shape.width * shape.mlp + 4 * (sequence + seen) * shape.width
    keys_and_values = rows * seen * 4 * memory * shape.width
    head = len(batch["scored"]) * 2 * shape.width * vocabulary
    return TRAINED * (shape.depth * (tokens * each + keys_and_values) + head)


def distillation(architecture: Architecture, batch: Batch, head: int) -> float:
    """What the last fifth of SigLIP 2 adds: teacher, masked view, local crops, and heads of `head` weights."""
    images, crops = batch["local"].shape[:2]
    whole, crop = image(architecture, architecture.resolution), image(architecture, batch["local"].shape[-1])
    views = whole * (1 + TRAINED) + TRAINED * crops * crop  # the teacher has no backward
    compared = 2 * head * ((crops + batch["mask_indices"].shape[1]) * TRAINED + 1 + batch["mask_indices"].shape[1])
    return images * float(views + compared)
