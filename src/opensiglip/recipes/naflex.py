"""SigLIP 2 NaFlex: one model for every aspect ratio and many resolutions."""

from dataclasses import replace
from typing import Annotated

from opensiglip import data, objectives
from opensiglip.bounds import Bounds
from opensiglip.errors import UserError
from opensiglip.models.sizes import architecture
from opensiglip.recipes.recipe import Continuation, Recipe

STRETCH = 3.75  # of the last tenth of the schedule    (Sec. 2.4.2)


def siglip2_naflex(
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
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
    logit_bias: str = "-10",
    multi_positive: bool = False,
    region_pairs: Annotated[float, Bounds(at_least=0)] = 0.0,
    token_weight: Annotated[float, Bounds(at_least=0)] = 0.0,
    nested: Annotated[tuple[int, ...], Bounds(at_least=1)] = (),
    budgets: Annotated[tuple[int, ...] | None, Bounds(at_least=1)] = None,
) -> Recipe:
    """SigLIP 2 NaFlex: SigLIP + LocCa at native aspect ratios and several resolutions.    (arXiv:2502.14786)

    L = L_sigmoid + L_caption, Sec. 2.4.2: it continues a run of siglip2 at 90 % (--continue-from), without
    self-distillation and masked prediction, and takes 3.75 times as many examples as were left.

    Args:
        size: size of the run to continue: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: resolution of that run: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text, for the text tower and the decoder.
        parallel: fraction of the captions (never of the boxes) predicted in parallel, drawn per example.
        boxes: format of a box: "y1 x1 y2 x2" or "x1 y1 x2 y2" (or with "," ", " ";" "; " as separator); ":TOP" uses
            integers 0..TOP instead of 0..500.
        regions: number of regions per image and step to locate by phrase, and to describe.
        decoder_depth: layers of the decoder; by default half the encoder's, rounded down.
        decoder_width: width of the decoder; by default that of the text tower.
        decoder_bias: use biases in the decoder's attention, MLP and block norms; CapPa's code has none.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop, as in the paper.
        logit_bias: initial bias of the sigmoid if no run is continued: -10, another number, or auto.
        multi_positive: treat the k captions of one image as each other's positives, with weight 1/k; by default they
            are ignored as negatives.
        region_pairs: weight of a sigmoid loss between the mean patch of each box and the box's phrase, for up to four
            boxes per image and step (after FG-CLIP); 0 in the paper.
        token_weight: weight of SuperCLIP's loss, in which the image's mean token predicts the tokens of the caption; 0
            turns it off, the paper uses 1.
        nested: widths, such as 64 128, to which embeddings may be truncated: the loss is added at each width.
        budgets: numbers of patches per image, one drawn for each batch; by default the paper's 128 256 576 784 1024.
            For tiny, whose square images have 64 patches instead of 256, a quarter of these. Batches of the largest
            budget are half as large.
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
    )
    chosen = tuple(budgets or ((budget // 4 for budget in data.BUDGETS) if size == "tiny" else data.BUDGETS))
    if min(chosen) < 1 or len(set(chosen)) < len(chosen):
        raise UserError(f"--budgets {' '.join(map(str, chosen))}: give different numbers of at least 1 patch.")
    patch, square = networks.patch, (networks.resolution // networks.patch) ** 2
    written, tasks = data.BoxFormat.parse(boxes), ("cap", "aref", "gcap")
    frame = data.NaFlex(patch, square, chosen, crop_area)
    return Recipe(
        replace(networks, naflex=True, nested=nested),
        frame,
        fields=[
            data.Images(frame),
            data.Texts(),
            data.Captions(tasks, parallel=parallel, boxes=written, regions=regions),
            *([data.RegionTexts()] if region_pairs else []),
        ],
        objectives=[
            objectives.Sigmoid(logit_bias=logit_bias, multi_positive=multi_positive),
            objectives.Caption(),
            *([objectives.RegionPairs(weight=region_pairs)] if region_pairs else []),
            *([objectives.TokenClassification(weight=token_weight)] if token_weight else []),
        ],
        tasks=tasks,
        boxes=written,
        # The schedule counts examples; the largest budget takes two steps for a batch.
        continuation=Continuation(share=0.9, stretch=STRETCH * (len(chosen) + 1) / len(chosen)),
    )
