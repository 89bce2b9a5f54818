"""Image and text towers, compared."""

import math
from dataclasses import replace
from typing import Annotated, Literal

from opensiglip import data, objectives
from opensiglip.bounds import Bounds
from opensiglip.errors import UserError
from opensiglip.models.sizes import CoCaShape, PairShape, architecture
from opensiglip.recipes.recipe import Recipe


def siglip(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    logit_bias: str = "-10",
    multi_positive: bool = False,
    hard_negatives: Annotated[int, Bounds(at_least=0, at_most=8)] = 0,
    token_weight: Annotated[float, Bounds(at_least=0)] = 0.0,
    nested: Annotated[tuple[int, ...], Bounds(at_least=1)] = (),
) -> Recipe:
    """SigLIP: one yes-or-no question per pair of image and text.    (arXiv:2303.15343)

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: pixels of a side; by default 256 patches (tiny: 64 pixels).
        length: tokens of a text.
        crop_area: smallest share of the image that a random crop keeps; 1 is no crop, as in the paper.
        logit_bias: where the sigmoid's bias starts: the paper's -10, another number, or auto = log(p / (1 - p)) with
            p = 1 / batch, which small batches need.
        multi_positive: the k captions of one image are each other's positives, of weight 1/k; by default they are only
            no negatives.
        hard_negatives: texts of an image that nearly fit it, and are negatives of it alone (NegCLIP): of the column
            `negative_caption`, of scenes by their grammar; 0 in the paper.
        token_weight: of SuperCLIP's loss in all: the image's mean token predicts which tokens are in the caption; 0 is
            none, 1 the paper's.
        nested: widths such as 64 128 that embeddings may be cut to: images and texts are compared at each, too.
    """
    networks = replace(architecture(size, resolution, length=length, text=True), nested=nested)
    frame = data.Frame(networks.resolution, crop_area)
    hard = [data.HardTexts(hard_negatives)] if hard_negatives else []
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Texts(), *hard],
        objectives=[
            objectives.Sigmoid(logit_bias=logit_bias, multi_positive=multi_positive),
            *([objectives.HardNegatives()] if hard else []),
            *([objectives.TokenClassification(weight=token_weight)] if token_weight else []),
        ],
    )


def align(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    head: Literal["map", "mlp", "linear"] = "mlp",
    embed: Annotated[int, Bounds(at_least=1, at_most=2**16)] = 384,
    dropout: Annotated[float, Bounds(at_least=0, less_than=1)] = 0.0,
    captions: Annotated[int, Bounds(at_least=1, at_most=1024)] = 1,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    flip: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.0,
    logit_bias: str = "auto",
    nested: Annotated[tuple[int, ...], Bounds(at_least=1)] = (),
) -> Recipe:
    """Two pretrained towers that stay as they are, and heads that learn to bring them together.    (LiT; SAIL)

    Give the towers by --vision and --text; --freeze vision, text or none trains what is not named. The sigmoid loss is
    SAIL's choice (arXiv:2412.04616) too; heads and their sizes are ours.

    Args:
        size: of a tower of ours, where --vision or --text is left out: tiny, S/16, B/16, ...
        resolution: pixels of a side; by default what the tower of --vision is fed.
        length: tokens of a text.
        head: over image tokens: mlp (class token and mean patch), map (attention pooling) or linear (class token).
        embed: width of the space that both towers are brought into.
        dropout: in the heads, while training.
        captions: different captions of each image at a step, all of them its positives.
        crop_area: smallest share of the image that a random crop keeps; 1 is no crop.
        flip: share of an image's visits that see it mirrored; none whose captions say left or right.
        logit_bias: where the sigmoid's bias starts: a number, or auto = log(p / (1 - p)) with p = 1 / batch.
        nested: widths such as 64 128 that embeddings may be cut to: images and texts are compared at each, too.
    """
    networks = replace(
        architecture(size, resolution, length=length, text=True),
        pair=PairShape(head=head, embed=embed, dropout=dropout),
        nested=nested,
    )
    frame = data.Frame(networks.resolution, crop_area, flip=flip)
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Texts(captions=captions)],
        objectives=[objectives.Sigmoid(logit_bias=logit_bias)],
        freeze_towers=True,
    )


def clip(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    token_weight: Annotated[float, Bounds(at_least=0)] = 0.0,
    nested: Annotated[tuple[int, ...], Bounds(at_least=1)] = (),
) -> Recipe:
    """CLIP: the right text among all texts, the right image among all images.    (arXiv:2103.00020)

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: pixels of a side; by default 256 patches (tiny: 64 pixels).
        length: tokens of a text.
        crop_area: smallest share of the image that a random crop keeps; 1 is no crop.
        token_weight: of SuperCLIP's loss in all: the image's mean token predicts which tokens are in the caption; 0 is
            none, 1 the paper's.
        nested: widths such as 64 128 that embeddings may be cut to: images and texts are compared at each, too.
    """
    networks = replace(
        architecture(size, resolution, length=length, text=True), logit_scale=1 / 0.07, logit_bias=False, nested=nested
    )
    frame = data.Frame(networks.resolution, crop_area)
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Texts()],
        objectives=[
            objectives.Softmax(),
            *([objectives.TokenClassification(weight=token_weight)] if token_weight else []),
        ],
    )


def lit(
    *,
    encoder: str | None = "timm/vit_base_patch16_224.augreg_in21k",
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = 224,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
) -> Recipe:
    """LiT: a text tower learns to fit a pretrained image tower that stays as it is.    (arXiv:2111.07991)

    Args:
        encoder: hub id or folder of the timm encoder that is locked; None locks a tower of ours, for --init to fill.
        size: of the text tower, and of our own image tower: tiny, S/16, B/16, L/16, ...
        resolution: pixels of a side; what the encoder was trained at.
        length: tokens of a text.
        crop_area: smallest share of the image that a random crop keeps; 1 is no crop.
    """
    networks = replace(
        architecture(size, resolution, length=length, text=True), logit_bias=False, encoder=encoder, frozen=True
    )
    frame = data.Frame(networks.resolution, crop_area)
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Texts()],
        objectives=[objectives.Softmax(most=math.inf)],
    )


def coca(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    queries: Annotated[int | None, Bounds(at_least=1, at_most=2**17)] = None,
    pooling: str = "cascade",
    caption_weight: Annotated[float, Bounds(at_least=0)] = 2.0,
    contrastive_weight: Annotated[float, Bounds(at_least=0)] = 1.0,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
) -> Recipe:
    """CoCa: contrastive and captioning at once, from one text decoder in two halves.    (arXiv:2205.01917)

    L = L_con + 2 L_cap, Sec. 3.2; L_con sums the two directions, where CLIP's halves them.

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: pixels of a side; by default 256 patches (tiny: 64 pixels).
        length: tokens of a text.
        queries: of the captioning pooler; by default the paper's 256, for tiny 64 (ours).
        pooling: cascade (the contrastive pooler reads what the other made) or parallel (both read the image).
        caption_weight: of the caption's loss; 0 leaves contrastive training alone.
        contrastive_weight: of the comparison; 0 leaves captioning alone.
        crop_area: smallest share of the image that a random crop keeps; 1 is no crop.
    """
    if pooling not in ("cascade", "parallel"):
        raise UserError(f"--pooling {pooling!r} is unknown; it is cascade or parallel.")
    networks = architecture(size, resolution, length=length, text=True)
    half = networks.text
    assert half is not None
    poolers = CoCaShape(queries or (64 if size == "tiny" else 256), networks.vision.heads, half.width, pooling)
    networks = replace(networks, decoder=half, coca=poolers, logit_scale=1 / 0.07, logit_bias=False)
    # Softmax is the mean of two directions, the paper's the sum.
    terms = [objectives.Softmax(weight=2 * contrastive_weight), objectives.Continue(weight=caption_weight)]
    frame = data.Frame(networks.resolution, crop_area)
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Texts(as_target=True)],
        objectives=list(terms),
        tasks=("cap",),
    )
