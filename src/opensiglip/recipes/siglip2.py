"""SigLIP 2: the sum of the other recipes, and the fine-tuning of its smaller models."""

from dataclasses import replace
from typing import Annotated

from opensiglip import data, objectives
from opensiglip.bounds import Bounds
from opensiglip.models.sizes import DISTILLATION, architecture, head
from opensiglip.recipes.recipe import Recipe


def siglip2(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    parallel: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.5,
    boxes: str = "y1 x1 y2 x2",
    regions: Annotated[int, Bounds(at_least=0, at_most=1024)] = 1,
    decoder_depth: Annotated[int | None, Bounds(at_least=1, at_most=256)] = None,
    decoder_width: Annotated[int | None, Bounds(at_least=1, at_most=2**16)] = None,
    decoder_bias: bool = False,
    image_positions: bool = False,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    logit_bias: str = "-10",
    multi_positive: bool = False,
    distill_start: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.8,
    momentum: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.966,
    prototypes: Annotated[int | None, Bounds(at_least=2, at_most=2**20)] = None,
    masked_weight: Annotated[float | None, Bounds(at_least=0)] = None,
    heads_alone: bool = False,
    region_pairs: Annotated[float, Bounds(at_least=0)] = 0.0,
    token_weight: Annotated[float, Bounds(at_least=0)] = 0.0,
    nested: Annotated[tuple[int, ...], Bounds(at_least=1)] = (),
) -> Recipe:
    """SigLIP 2: SigLIP + LocCa; in the last fifth also SILC and TIPS.    (arXiv:2502.14786)

    L = L_sigmoid + L_caption + r (L_local_to_global + 1/4 L_masked_patches), Sec. 2.2 and 2.3; r by size: B 1/4, L 1/2,
    So400m 1, g 1/2. The last two compare additional augmented views with an EMA teacher.

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text, for the text tower and the decoder.
        parallel: fraction of the captions (never of the boxes) predicted in parallel, drawn per example.
        boxes: format of a box: "y1 x1 y2 x2" or "x1 y1 x2 y2" (or with "," ", " ";" "; " as separator); ":TOP" uses
            integers 0..TOP instead of 0..500.
        regions: number of regions per image and step to locate by phrase, and to describe; 0 trains captions only.
        decoder_depth: layers of the decoder; by default half the encoder's, rounded down.
        decoder_width: width of the decoder; by default that of the text tower.
        decoder_bias: use biases in the decoder's attention, MLP and block norms; CapPa's code has none.
        image_positions: add a learned position to each image token in the decoder; for towers of other libraries.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop, as in the paper.
        logit_bias: initial bias of the sigmoid: the paper's -10, another number, or auto = log(p / (1 - p)) with p = 1
            / batch, which small batches need.
        multi_positive: treat the k captions of one image as each other's positives, with weight 1/k; by default they
            are ignored as negatives.
        distill_start: fraction of training after which self-distillation and masked prediction begin; 1 means never.
        momentum: EMA momentum of the teacher, constant; the paper refers to SILC, whose value is recalled, not
            established.
        prototypes: number of prototypes of each projection head; by default 65536 (recalled), for tiny 1024 (ours).
        masked_weight: weight of masked prediction in the loss; by default the paper's r / 4. Short runs need more.
        heads_alone: keep an EMA of the projection heads only; the teacher's tower is the student's, as in TIPSv2, which
            saves memory.
        region_pairs: weight of a sigmoid loss between the mean patch of each box and the box's phrase, for up to four
            boxes per image and step (after FG-CLIP); 0 in the paper.
        token_weight: weight of SuperCLIP's loss, in which the image's mean token predicts the tokens of the caption; 0
            turns it off, the paper uses 1.
        nested: widths, such as 64 128, to which embeddings may be truncated: the loss is added at each width.
    """
    networks = architecture(
        size,
        resolution,
        length=length,
        text=True,
        decoder=True,
        decoder_depth=decoder_depth,
        decoder_width=decoder_width,
        decoder_bias=decoder_bias,
        image_positions=image_positions,
    )
    networks = replace(networks, nested=nested)
    side, patch, width = networks.resolution, networks.patch, networks.vision.width
    written, tasks = data.BoxFormat.parse(boxes), ("cap", "aref", "gcap") if regions else ("cap",)
    r, shape, start = DISTILLATION[size.partition("/")[0]], head(size, prototypes), distill_start
    teacher = objectives.Momentum(momentum, heads_alone=heads_alone)
    frame = data.Frame(side, crop_area)
    patches = r / 4 if masked_weight is None else masked_weight
    taught = (  # the heads are as large as a tower, so they are not built for a stage that never begins
        [
            objectives.LocalToGlobal(width, shape, weight=r, start=start, momentum=teacher),
            objectives.MaskedPatches(width, shape, weight=patches, start=start, momentum=teacher),
        ]
        if start < 1
        else []
    )
    return Recipe(
        networks,
        frame,
        fields=[
            data.Images(frame),
            data.Texts(),
            data.Captions(tasks, parallel=parallel, boxes=written, regions=regions),
            *([data.RegionTexts()] if region_pairs else []),
            data.Views(side, patch, wholes=1, locals=8, start=start),
            data.PatchMask(side, patch, ratio=0.5, start=start),
        ],
        objectives=[
            objectives.Sigmoid(logit_bias=logit_bias, multi_positive=multi_positive),
            objectives.Caption(),
            *taught,
            *([objectives.RegionPairs(weight=region_pairs)] if region_pairs else []),
            *([objectives.TokenClassification(weight=token_weight)] if token_weight else []),
        ],
        tasks=tasks,
        boxes=written,
    )


def siglip2_acid(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    logit_bias: str = "-10",
    multi_positive: bool = False,
) -> Recipe:
    """SigLIP 2 ACID: fine-tuning with the sigmoid loss on examples selected with a reference.    (arXiv:2502.14786)

    Sec. 2.5, after ACID (arXiv:2411.18674): learning rate 1e-5, no weight decay, half of each super-batch left out, for
    B/32 three quarters. --init names the model to fine-tune and --reference the reference.

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop, as in the paper.
        logit_bias: initial bias of the sigmoid without --init: the paper's -10, another number, or auto = log(p / (1 -
            p)) with p = 1 / batch.
        multi_positive: treat the k captions of one image as each other's positives, with weight 1/k; by default they
            are ignored as negatives.
    """
    networks = architecture(size, resolution, length=length, text=True)
    frame = data.Frame(networks.resolution, crop_area)
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Texts()],
        objectives=[objectives.Sigmoid(logit_bias=logit_bias, multi_positive=multi_positive)],
        filter=0.75 if networks.patch == 32 else 0.5,
    )
