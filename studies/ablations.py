"""Studies of one number that a paper varies: the batch, and the share of captions that are predicted in parallel."""

from typing import Any

from studies.settings import AUTO, EASY, LARGER, SMALL, TINIER
from studies.study import Budget, Figure, Run, Study

BATCHES = (16, 32, 64, 128, 256, 512)
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {"sigmoid": ("siglip", AUTO), "softmax": ("clip", {})}
BATCH = Study(
    name="batch",
    question="At which batch sizes does the sigmoid loss beat the softmax?",
    about=(
        "SigLIP and CLIP see the same number of images at each batch size, so a larger batch takes fewer steps. "
        "The learning rate is the same for all. SigLIP's authors tuned it for each batch size."
    ),
    data=EASY.format(3),
    runs=tuple(
        Run(f"{loss}-{size}", recipe, flags | {"batch_size": size}, share=BATCHES[0] / size)
        for size in BATCHES
        for loss, (recipe, flags) in LOSSES.items()
    ),
    figures=tuple(
        Figure("retrieval", f"{way}_r{rank}", f"{title}, R@{rank}", ("softmax-16", "sigmoid-16"), "SigLIP (Figure 2)")
        for rank in (1, 10)
        for way, title in (("image_to_text", "image to text"), ("text_to_image", "text to image"))
    ),
    budgets={
        "cpu-hour": Budget(TINIER | {"optimizer": "muon", "steps": 1600}, {"count": 500}),
        "gpu-10min": Budget(LARGER | {"optimizer": "muon", "steps": 12800}, {"count": 500}),
    },
)

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
PARALLEL = Study(
    name="parallel",
    question="What share of the captions should be predicted in parallel?",
    about=(
        "CapPa with each --parallel: the share of captions whose input is all [MASK], drawn for each example. `0` is "
        "Cap; `1` never learns to continue a caption. The encoder's pooled feature is read by a linear classifier: by "
        "least squares on ten images of each name, and by logistic regression on all training images."
    ),
    data=EASY.format(1),
    runs=tuple(Run(f"{fraction:g}", "cappa", {"parallel": fraction}) for fraction in FRACTIONS),
    figures=(
        Figure("probes", "image: shots_10", "ten-shot probe", ("0", "0.75"), "CapPa (75 % is best)"),
        Figure("probes", "image: linear", "linear probe", ("0", "0.75"), "CapPa (75 % is best)"),
        Figure("captioning", "cider_greedy", "captions, CIDEr"),
    ),
    budgets={
        "cpu-hour": Budget(
            SMALL | {"optimizer": "muon", "lr": 0.002, "steps": 600}, {"count": 500, "train_count": 800}
        ),
        "gpu-10min": Budget(
            LARGER | {"optimizer": "muon", "lr": 0.002, "steps": 1500}, {"count": 500, "train_count": 2000}
        ),
    },
)
