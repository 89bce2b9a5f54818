"""Contrastive recipes: image and text towers."""

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
    region_pairs: Annotated[float, Bounds(at_least=0)] = 0.0,
    token_weight: Annotated[float, Bounds(at_least=0)] = 0.0,
    nested: Annotated[tuple[int, ...], Bounds(at_least=1)] = (),
) -> Recipe:
    """SigLIP: pairwise sigmoid loss, a binary classification of each image-text pair.    (arXiv:2303.15343)

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop, as in the paper.
        logit_bias: initial bias of the sigmoid: the paper's -10, another number, or auto = log(p / (1 - p)) with p = 1
            / batch, which small batches need.
        multi_positive: treat the k captions of one image as each other's positives, with weight 1/k; by default they
            are ignored as negatives.
        hard_negatives: number of texts per image that nearly match it and are negatives of that image only (NegCLIP),
            from the column `negative_caption` or the grammar of the scenes; 0 in the paper.
        region_pairs: weight of a sigmoid loss between the mean patch of each box and the box's phrase, for up to four
            boxes per image and step (after FG-CLIP); 0 in the paper.
        token_weight: weight of SuperCLIP's loss, in which the image's mean token predicts the tokens of the caption; 0
            turns it off, the paper uses 1.
        nested: widths, such as 64 128, to which embeddings may be truncated: the loss is added at each width.
    """
    networks = replace(architecture(size, resolution, length=length, text=True), nested=nested)
    frame = data.Frame(networks.resolution, crop_area)
    hard = [data.HardTexts(hard_negatives)] if hard_negatives else []
    named = [data.RegionTexts()] if region_pairs else []
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Texts(), *hard, *named],
        objectives=[
            objectives.Sigmoid(logit_bias=logit_bias, multi_positive=multi_positive),
            *([objectives.HardNegatives()] if hard else []),
            *([objectives.RegionPairs(weight=region_pairs)] if region_pairs else []),
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
    """Align: heads trained to align two frozen pretrained towers.    (LiT; SAIL)

    --vision and --text name the towers; --freeze vision, text or none trains the other towers, too. SAIL
    (arXiv:2412.04616) also uses the sigmoid loss; the heads and their sizes are ours.

    Args:
        size: size of an OpenSigLIP tower in place of a missing --vision or --text: tiny, S/16, B/16, ...
        resolution: side of the image in pixels; by default the input size of the --vision tower.
        length: tokens per text.
        head: head over image tokens: mlp (class token and mean patch), map (attention pooling) or linear (class token).
        embed: width of the common embedding space.
        dropout: dropout in the heads during training.
        captions: number of different captions per image and step, all of them positives of the image.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop.
        flip: fraction of visits that see the image mirrored; images whose captions say left or right are never
            mirrored.
        logit_bias: initial bias of the sigmoid: a number, or auto = log(p / (1 - p)) with p = 1 / batch.
        nested: widths, such as 64 128, to which embeddings may be truncated: the loss is added at each width.
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
    """CLIP: softmax contrastive loss over the images and texts of a batch.    (arXiv:2103.00020)

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop.
        token_weight: weight of SuperCLIP's loss, in which the image's mean token predicts the tokens of the caption; 0
            turns it off, the paper uses 1.
        nested: widths, such as 64 128, to which embeddings may be truncated: the loss is added at each width.
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
    """LiT: a text tower trained to match a frozen pretrained image tower.    (arXiv:2111.07991)

    Args:
        encoder: hub id or folder of the locked timm encoder; None locks an OpenSigLIP tower, whose weights --init
            should provide.
        size: size of the text tower, and of OpenSigLIP's image tower if it is used: tiny, S/16, B/16, L/16, ...
        resolution: side of the image in pixels; the resolution at which the encoder was trained.
        length: tokens per text.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop.
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
    """CoCa: contrastive and captioning losses with one text decoder in two halves.    (arXiv:2205.01917)

    L = L_con + 2 L_cap, Sec. 3.2; L_con is the sum of the two directions, CLIP's loss their mean.

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        queries: number of queries of the captioning pooler; by default the paper's 256, for tiny 64 (ours).
        pooling: cascade (the contrastive pooler reads the captioning pooler's output) or parallel (both read the
            image).
        caption_weight: weight of the caption loss; 0 trains the contrastive loss only.
        contrastive_weight: weight of the contrastive loss; 0 trains captioning only.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop.
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
