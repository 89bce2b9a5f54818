"""Contrastive learning with self-distillation: SILC and TIPS."""

from typing import Annotated

from opensiglip import data, objectives
from opensiglip.bounds import Bounds
from opensiglip.models.sizes import Architecture, architecture, head
from opensiglip.recipes.recipe import Recipe


def silc(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    logit_bias: str = "-10",
    multi_positive: bool = False,
    momentum: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.966,
    prototypes: Annotated[int | None, Bounds(at_least=2, at_most=2**20)] = None,
) -> Recipe:
    """SILC: sigmoid loss, and self-distillation of local crops from an EMA teacher.    (arXiv:2310.13355)

    L = L_sigmoid + L_local_to_global; two global views, each aligned with the text, and eight local ones.

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        logit_bias: initial bias of the sigmoid: -10, another number, or auto = log(p / (1 - p)) with p = 1 / batch.
        multi_positive: treat the k captions of one image as each other's positives, with weight 1/k; by default they
            are ignored as negatives.
        momentum: EMA momentum of the teacher, constant, as the paper requires; the value is recalled, not established.
        prototypes: number of prototypes of the projection head; by default 65536 (recalled), for tiny 1024 (ours).
    """
    networks = architecture(size, resolution, length=length, text=True)
    side, patch, width = networks.resolution, networks.patch, networks.vision.width
    return Recipe(
        networks,
        data.Frame(side),
        fields=[data.Texts(), data.Views(side, patch, wholes=2, locals=8)],
        objectives=[
            objectives.Sigmoid(image="global", logit_bias=logit_bias, multi_positive=multi_positive),
            objectives.LocalToGlobal(
                width, head(size, prototypes), weight=1.0, start=0.0, momentum=objectives.Momentum(momentum)
            ),
        ],
    )


def tips(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    mask: Annotated[float, Bounds(more_than=0, at_most=1)] = 0.75,
    logit_bias: str = "-10",
    multi_positive: bool = False,
    momentum: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.994,
    momentum_end: Annotated[float, Bounds(at_least=0, at_most=1)] = 1.0,
    prototypes: Annotated[int | None, Bounds(at_least=2, at_most=2**20)] = None,
) -> Recipe:
    """TIPS: two captions aligned with two pooled features, self-distillation, masked patches.    (arXiv:2410.16512)

    L = 1/2 (L_sigmoid + L_second_sigmoid) + 1 L_local_to_global + 2 L_masked_patches, App. A.2, on one global view. The
    paper pools with two CLS tokens; SigLIP's towers have none, so there are two MAP probes instead (ours).

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        mask: fraction of the patches that are masked for the student.
        logit_bias: initial bias of the sigmoid: -10, another number, or auto = log(p / (1 - p)) with p = 1 / batch.
        multi_positive: treat the k captions of one image as each other's positives, with weight 1/k; by default they
            are ignored as negatives.
        momentum: EMA momentum of the teacher at the start (recalled, not established).
        momentum_end: EMA momentum of the teacher at the end, reached along a cosine (recalled, not established).
        prototypes: number of prototypes of each projection head; by default the paper's 32768, for tiny 1024 (ours).
    """
    networks = architecture(size, resolution, length=length, text=True)
    teacher = objectives.Momentum(momentum, momentum_end)
    return _tips(networks, size, mask, logit_bias, multi_positive, teacher, prototypes, visible=False)


def tips2(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    mask: Annotated[float, Bounds(more_than=0, at_most=1)] = 0.75,
    logit_bias: str = "-10",
    multi_positive: bool = False,
    momentum: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.994,
    momentum_end: Annotated[float, Bounds(at_least=0, at_most=1)] = 1.0,
    prototypes: Annotated[int | None, Bounds(at_least=2, at_most=2**20)] = None,
) -> Recipe:
    """TIPSv2: TIPS with a loss on every patch, masked or not, and an EMA of the heads only.    (arXiv:2604.12012)

    The loss is that of `tips`, except that masked_patches averages over all patches (iBOT++), and the teacher is the
    student's tower with an EMA of the heads. Weights, mask and momentum are TIPS's; TIPSv2's were not available.

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text.
        mask: fraction of the patches that are masked for the student.
        logit_bias: initial bias of the sigmoid: -10, another number, or auto = log(p / (1 - p)) with p = 1 / batch.
        multi_positive: treat the k captions of one image as each other's positives, with weight 1/k; by default they
            are ignored as negatives.
        momentum: EMA momentum of the heads at the start.
        momentum_end: EMA momentum of the heads at the end, reached along a cosine.
        prototypes: number of prototypes of each projection head; by default TIPS's 32768, for tiny 1024 (ours).
    """
    networks = architecture(size, resolution, length=length, text=True)
    teacher = objectives.Momentum(momentum, momentum_end, heads_alone=True)
    return _tips(networks, size, mask, logit_bias, multi_positive, teacher, prototypes, visible=True)


def _tips(
    networks: Architecture,
    size: str,
    mask: float,
    logit_bias: str,
    multi_positive: bool,
    teacher: "objectives.Momentum",
    prototypes: int | None,
    *,
    visible: bool,
) -> Recipe:
    side, patch, width = networks.resolution, networks.patch, networks.vision.width
    shape = head(size, prototypes or (None if size == "tiny" else 32768))
    return Recipe(
        networks,
        data.Frame(side),
        fields=[
            data.Texts(),
            data.SecondTexts(),
            data.Views(side, patch, wholes=1, locals=6),
            data.PatchMask(side, patch, ratio=mask),
        ],
        objectives=[
            objectives.Sigmoid(image="global", weight=0.5, logit_bias=logit_bias, multi_positive=multi_positive),
            objectives.Sigmoid(
                image="global",
                text="second_text",
                probe_width=width,
                name="second_sigmoid",
                weight=0.5,
                logit_bias=logit_bias,
                multi_positive=multi_positive,
            ),
            objectives.LocalToGlobal(width, shape, weight=1.0, start=0.0, momentum=teacher),
            objectives.MaskedPatches(width, shape, weight=2.0, start=0.0, momentum=teacher, visible=visible),
        ],
    )
