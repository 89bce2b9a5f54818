"""Studies of what embeddings and patches hold: nested widths, and TIPSv2's terms."""

from typing import Any

from studies.settings import AUTO, EASY, LARGER, SMALL, TINIER
from studies.study import Budget, Figure, Run, Study

QUARTER, BOTH = {"nested": "image_to_text_at_16_r10"}, ("plain", "nested")
NESTED = Study(
    name="nested",
    question="What does the first quarter of a nested embedding keep of whole embeddings trained without nesting?",
    about=(
        "SigLIP by Muon: `plain`, and `nested` with `--nested 16 32` of 64 dimensions. First both are judged by whole "
        "embeddings, then `nested` by its first 16 dimensions against all 64 of `plain`."
    ),
    data=EASY.format(3),
    runs=(Run("plain", "siglip", AUTO), Run("nested", "siglip", AUTO | {"nested": (16, 32)})),
    figures=(
        Figure("retrieval", "image_to_text_r10", "image to text, R@10", BOTH),
        Figure("retrieval", "text_to_image_r10", "text to image, R@10", BOTH),
        Figure("retrieval", "image_to_text_r10", "image to text, R@10, a quarter against all", BOTH, by_run=QUARTER),
        Figure(
            "retrieval",
            "text_to_image_r10",
            "text to image, R@10, a quarter against all",
            BOTH,
            by_run={"nested": "text_to_image_at_16_r10"},
        ),
    ),
    budgets={
        "cpu-hour": Budget(TINIER | {"optimizer": "muon", "steps": 900}, {"count": 500}),
        "gpu-10min": Budget(LARGER | {"optimizer": "muon", "steps": 1500}, {"count": 500}),
    },
)

# Networks of `tiny`, whose projection heads are narrow, of 256 prototypes as in the study of distillation.
VIEWED: dict[str, Any] = SMALL | {"optimizer": "muon", "resolution": 64, "lr": 0.002}
HEADS: dict[str, Any] = AUTO | {"prototypes": 256}
TERMS = ("tips", "tips2")
TIPS2 = Study(
    name="tips2",
    question="Do TIPSv2's terms give better patches than TIPS's in as many steps?",
    about=(
        "`tips`, `tips2`, and the networks as they start. Patches are judged without training a network: by their 20 "
        "nearest of training scenes, and by their similarity with the names of things."
    ),
    data=EASY.format(3),
    runs=(
        # Its one step has the rate 0 of the warm-up's start.
        Run("untrained", "tips", HEADS | {"warmup": 1}, share=0.004),
        Run("tips", "tips", HEADS),
        Run("tips2", "tips2", HEADS),
    ),
    figures=(
        Figure("probes", "segmentation: knn_iou", "patches by k-NN, IoU", ("untrained", *TERMS), "TIPSv2"),
        Figure("openvocab", "image_iou", "names of pixels, IoU", ("untrained", *TERMS), "TIPSv2"),
        Figure("retrieval", "image_to_text_r1", "image to text, R@1", TERMS),
    ),
    budgets={
        "cpu-hour": Budget(VIEWED | {"steps": 250}, {"count": 500, "train_count": 300}),
        "gpu-10min": Budget(VIEWED | {"batch_size": 256, "steps": 1500}, {"count": 500, "train_count": 1000}),
    },
)
