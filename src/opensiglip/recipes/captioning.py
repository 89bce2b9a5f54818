"""Image tower and decoder: texts predicted from the image. The three papers differ only in their data."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NamedTuple

from opensiglip import data, objectives
from opensiglip.bounds import Bounds
from opensiglip.models.sizes import architecture
from opensiglip.recipes.recipe import Recipe

if TYPE_CHECKING:
    from opensiglip.data.fields.field import Field
    from opensiglip.objectives.base import Objective


def cap(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    decoder_depth: Annotated[int | None, Bounds(at_least=1, at_most=256)] = None,
    decoder_width: Annotated[int | None, Bounds(at_least=1, at_most=2**16)] = None,
    decoder_bias: bool = False,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
) -> Recipe:
    """Cap: plain autoregressive captioning, CapPa's baseline.    (arXiv:2306.07915)

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        decoder_depth: layers of the decoder; by default half the encoder's, rounded down.
        decoder_width: width of the decoder; by default that of the size.
        decoder_bias: use biases in the decoder's attention, MLP and block norms; the paper's code has none.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop, as in the paper.
    """
    return cappa(
        size=size,
        resolution=resolution,
        length=length,
        parallel=0.0,
        decoder_depth=decoder_depth,
        decoder_width=decoder_width,
        decoder_bias=decoder_bias,
        crop_area=crop_area,
    )


def cappa(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    parallel: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.75,
    decoder_depth: Annotated[int | None, Bounds(at_least=1, at_most=256)] = None,
    decoder_width: Annotated[int | None, Bounds(at_least=1, at_most=2**16)] = None,
    decoder_bias: bool = False,
    decoder_dropout: Annotated[float, Bounds(at_least=0, less_than=1)] = 0.0,
    image_positions: bool = False,
    captions: Annotated[int, Bounds(at_least=1, at_most=1024)] = 1,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    flip: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.0,
    cider_weight: Annotated[float, Bounds(at_least=0)] = 0.0,
    cider_start: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.0,
) -> Recipe:
    """CapPa: captioning, three quarters of the captions predicted in parallel.    (arXiv:2306.07915)

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        parallel: fraction of the captions whose input is all [MASK], drawn per example.
        decoder_depth: layers of the decoder; by default half the encoder's, rounded down.
        decoder_width: width of the decoder; by default that of the size.
        decoder_bias: use biases in the decoder's attention, MLP and block norms; the paper's code has none.
        decoder_dropout: fraction of each decoder layer's output that is dropped in training; the papers use none.
        image_positions: add a learned position to each image token in the decoder; for towers of other libraries.
        captions: number of different captions per image and step; they share the cost of the image.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop, as in the paper.
        flip: fraction of visits that see the image mirrored, with its boxes; images whose texts say left or right are
            never mirrored.
        cider_weight: weight of self-critical training, which rewards captions that the decoder draws by their CIDEr-D
            against the image's own; 0, as in the papers, turns it off. For decoders that write captions already.
        cider_start: fraction of training from which on captions are rewarded.
    """
    networks = architecture(
        size,
        resolution,
        length=length,
        decoder=True,
        decoder_depth=decoder_depth,
        decoder_width=decoder_width,
        decoder_bias=decoder_bias,
        decoder_dropout=decoder_dropout,
        image_positions=image_positions,
    )
    boxes = data.BoxFormat()
    frame = data.Frame(networks.resolution, crop_area, flip=flip)
    texts = data.Captions(("cap",), prefix=False, parallel=parallel, boxes=boxes, captions=captions)
    rewarded = rewards(cider_weight, cider_start, prefix=False)
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), texts, *rewarded.fields],
        objectives=[objectives.Caption(), *rewarded.objectives],
        tasks=("cap",),
    )


def locca(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    parallel: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.5,
    boxes: str = "y1 x1 y2 x2",
    regions: Annotated[int, Bounds(at_least=1, at_most=1024)] = 1,
    decoder_depth: Annotated[int | None, Bounds(at_least=1, at_most=256)] = None,
    decoder_width: Annotated[int | None, Bounds(at_least=1, at_most=2**16)] = None,
    decoder_bias: bool = False,
    decoder_dropout: Annotated[float, Bounds(at_least=0, less_than=1)] = 0.0,
    image_positions: bool = False,
    captions: Annotated[int, Bounds(at_least=1, at_most=1024)] = 1,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    flip: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.0,
    cider_weight: Annotated[float, Bounds(at_least=0)] = 0.0,
    cider_start: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.0,
) -> Recipe:
    """LocCa: captions, referring boxes and grounded captions, half of the captions in parallel.    (arXiv:2403.19596)

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        parallel: fraction of the captions (never of the boxes) predicted in parallel, drawn per example.
        boxes: format of a box: "y1 x1 y2 x2" or "x1 y1 x2 y2" (or with "," ", " ";" "; " as separator); ":TOP" uses
            integers 0..TOP instead of 0..500.
        regions: number of regions per image and step to locate by phrase, and to describe.
        decoder_depth: layers of the decoder; by default half the encoder's, rounded down.
        decoder_width: width of the decoder; by default that of the size.
        decoder_bias: use biases in the decoder's attention, MLP and block norms; CapPa's code has none.
        decoder_dropout: fraction of each decoder layer's output that is dropped in training; the papers use none.
        image_positions: add a learned position to each image token in the decoder; for towers of other libraries.
        captions: number of different captions per image and step; they share the cost of the image.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop, as in the paper.
        flip: fraction of visits that see the image mirrored, with its boxes; images whose texts say left or right are
            never mirrored.
        cider_weight: weight of self-critical training, which rewards captions that the decoder draws by their CIDEr-D
            against the image's own; 0, as in the papers, turns it off. For decoders that write captions already.
        cider_start: fraction of training from which on captions are rewarded.
    """
    networks = architecture(
        size,
        resolution,
        length=length,
        decoder=True,
        decoder_depth=decoder_depth,
        decoder_width=decoder_width,
        decoder_bias=decoder_bias,
        decoder_dropout=decoder_dropout,
        image_positions=image_positions,
    )
    written, tasks = data.BoxFormat.parse(boxes), ("cap", "aref", "gcap")
    frame = data.Frame(networks.resolution, crop_area, flip=flip)
    texts = data.Captions(tasks, parallel=parallel, boxes=written, regions=regions, captions=captions)
    rewarded = rewards(cider_weight, cider_start, prefix=True)
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), texts, *rewarded.fields],
        objectives=[objectives.Caption(), *rewarded.objectives],
        tasks=tasks,
        boxes=written,
    )


class Rewarded(NamedTuple):
    """What self-critical training adds to a recipe."""

    fields: "list[Field]"
    objectives: "list[Objective]"


def rewards(weight: float, start: float, *, prefix: bool) -> Rewarded:
    """Of that weight, from the fraction `start` of training on; nothing without weight."""
    if not weight:
        return Rewarded([], [])
    return Rewarded(
        [data.References(start=start)], [objectives.SelfCritical(prefix=prefix, weight=weight, start=start)]
    )


def captioner(
    *,
    encoder: str | None = "timm/vit_base_patch16_224.augreg_in21k",
    frozen: bool = True,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = 224,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 77,
    parallel: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.75,
    decoder_depth: Annotated[int | None, Bounds(at_least=1, at_most=256)] = None,
    decoder_width: Annotated[int | None, Bounds(at_least=1, at_most=2**16)] = None,
    decoder_bias: bool = False,
    decoder_dropout: Annotated[float, Bounds(at_least=0, less_than=1)] = 0.0,
    image_positions: bool = False,
    captions: Annotated[int, Bounds(at_least=1, at_most=1024)] = 1,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    flip: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.0,
    cider_weight: Annotated[float, Bounds(at_least=0)] = 0.0,
    cider_start: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.0,
) -> Recipe:
    """A captioner: CapPa's decoder trained on a frozen pretrained timm encoder.    (after CapPa)

    Args:
        encoder: hub id or folder of the timm encoder, whose tokens are read after its final norm; None uses an
            OpenSigLIP tower.
        frozen: do not train the encoder; use --no-frozen for an OpenSigLIP tower, which starts from random weights.
        size: size of the decoder, and of the encoder whose depth it halves: tiny, S/16, B/16, L/16, ...
        resolution: side of the image in pixels; the resolution at which the encoder was trained.
        length: tokens per text.
        parallel: fraction of the captions whose input is all [MASK], drawn per example.
        decoder_depth: layers of the decoder; by default half the size's, rounded down.
        decoder_width: width of the decoder; by default that of the size.
        decoder_bias: use biases in the decoder's attention, MLP and block norms.
        decoder_dropout: fraction of each decoder layer's output that is dropped in training; the papers use none.
        image_positions: add a learned position to each image token in the decoder; for towers of other libraries.
        captions: number of different captions per image and step; they share the cost of the image.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop.
        flip: fraction of visits that see the image mirrored, with its boxes; images whose texts say left or right are
            never mirrored.
        cider_weight: weight of self-critical training, which rewards captions that the decoder draws by their CIDEr-D
            against the image's own; 0, as in the papers, turns it off. For decoders that write captions already.
        cider_start: fraction of training from which on captions are rewarded.
    """
    recipe = cappa(
        size=size,
        resolution=resolution,
        length=length,
        parallel=parallel,
        decoder_depth=decoder_depth,
        decoder_width=decoder_width,
        decoder_bias=decoder_bias,
        decoder_dropout=decoder_dropout,
        image_positions=image_positions,
        captions=captions,
        crop_area=crop_area,
        flip=flip,
        cider_weight=cider_weight,
        cider_start=cider_start,
    )
    return replace(recipe, architecture=replace(recipe.architecture, encoder=encoder, frozen=frozen))
