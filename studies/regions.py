"""The study of regions compared with their phrases."""

from typing import Any

from studies.settings import AUTO, EASY, LARGER, TINIER
from studies.study import Budget, Figure, Run, Study

WAYS = ("without", "with")
BARE: dict[str, Any] = AUTO | {"distill_start": 1.0, "resolution": 64, "length": 32, "optimizer": "muon"}
REGIONS = Study(
    name="region-pairs",
    question="Do regions compared with their phrases help to point at what a text names?",
    about=(
        "SigLIP 2 without its last stage, and the same with `--region-pairs 1`: a sigmoid between the mean of a box's "
        "patches, each on its way into the texts' space, and the box's phrase. Both also ask for regions by phrase and "
        "describe them (LocCa), so both learn from the same boxes. Judged by the similarity of patches and texts, "
        "without training: is the most similar pixel in the phrase's box, and which of all names is the most similar "
        "at each pixel of a thing?"
    ),
    data=EASY.format(3),
    runs=(Run("without", "siglip2", BARE), Run("with", "siglip2", BARE | {"region_pairs": 1.0})),
    figures=(
        Figure("openvocab", "pointing", "phrases pointed at", WAYS),
        Figure("openvocab", "pointing_centred", "the same, less the empty text", WAYS),
        Figure("openvocab", "image_iou", "names of pixels, IoU", WAYS),
        Figure("retrieval", "image_to_text_r1", "image to text, R@1", WAYS),
        Figure("retrieval", "text_to_image_r1", "text to image, R@1", WAYS),
    ),
    budgets={
        "cpu-hour": Budget(TINIER | {"lr": 0.004, "workers": 0, "precision": "fp32", "steps": 400}, {"count": 500}),
        "gpu-10min": Budget(LARGER | {"steps": 1500}, {"count": 500}),
    },
)
