"""Studies of what makes training cheaper: the optimizer, and fewer tokens."""

from typing import Any

from studies.settings import AUTO, EASY, LARGER, TINIER
from studies.study import Budget, Figure, Run, Study

# `make train` without its last stage, and shorter: SigLIP 2's comparison and captions on drawings.
DRAWINGS: dict[str, Any] = AUTO | {
    "size": "tiny",
    "resolution": 64,
    "length": 32,
    "batch_size": 32,
    "regions": 3,
    "lr": 0.002,
    "distill_start": 1.0,
}
OPTIMIZERS = Study(
    name="optimizers",
    question="Does another optimizer learn more than AdamW in as many steps, and Muon in as much time?",
    about=(
        "`make train` without its last stage, and shorter, with each --optimizer at the same rate and decay. The "
        "table's images a second say what a step costs; `muon-as-long` has 0.7 of the steps, as a step of Muon takes "
        "1.43 times AdamW's."
    ),
    data=EASY.format(3),
    runs=(
        *(Run(name, "siglip2", {"optimizer": name}) for name in ("adamw", "muon", "adafactor", "schedule-free-adamw")),
        Run("muon-as-long", "siglip2", {"optimizer": "muon"}, share=0.7),  # of the steps: as long as AdamW takes
    ),
    figures=(
        Figure("retrieval", "image_to_text_r10", "image to text, R@10", ("adamw", "muon-as-long", "muon")),
        Figure("retrieval", "text_to_image_r10", "text to image, R@10", ("adamw", "muon-as-long", "muon")),
        Figure("grounding", "accuracy", "phrases found", ("adamw", "muon-as-long", "muon")),
    ),
    budgets={
        "cpu-hour": Budget(DRAWINGS | {"steps": 300}, {"count": 500}),
        "gpu-10min": Budget(DRAWINGS | {"batch_size": 256, "steps": 1500}, {"count": 500}),
    },
)

KEEP = Study(
    name="keep-tokens",
    question="What does it cost to read a share of an image's patches?",
    about=(
        "SigLIP by Muon on all of the 64 patches, and on random ones of them with all in the last tenth, for the same "
        "steps. `half-only` never sees whole images."
    ),
    data=EASY.format(3),
    runs=(
        Run("all", "siglip", AUTO),
        Run("half", "siglip", AUTO | {"keep_tokens": 0.5}),
        Run("quarter", "siglip", AUTO | {"keep_tokens": 0.25}),
        Run("half-only", "siglip", AUTO | {"keep_tokens": 0.5, "full_from": 1.0}),
    ),
    figures=(
        Figure("retrieval", "image_to_text_r1", "image to text, R@1", ("all", "half", "quarter")),
        Figure("retrieval", "text_to_image_r1", "text to image, R@1", ("all", "half", "quarter")),
    ),
    budgets={
        "cpu-hour": Budget(TINIER | {"resolution": 64, "optimizer": "muon", "steps": 900}, {"count": 500}),
        "gpu-10min": Budget(LARGER | {"optimizer": "muon", "steps": 1500}, {"count": 500}),
    },
)

# 256 patches of 4 pixels, so that they are most of what a step costs.
PATCHES: dict[str, Any] = TINIER | {"size": "64x2x128x2/4", "optimizer": "muon", "resolution": 64}
SCHEDULES = Study(
    name="schedules",
    question="What do small images cost, and fewer tokens, until the last fifth of training?",
    about=(
        "SigLIP by Muon on scenes of 64 pixels, 256 patches: whole; at 32 pixels up to 80 %; "
        "on a random half of the patches up to 80 %; at 32 pixels and with texts of 12 tokens."
    ),
    data=EASY.format(3),
    runs=(
        Run("whole", "siglip", AUTO),
        Run("small", "siglip", AUTO | {"resolution": "32@0,64@0.8"}),
        Run("half", "siglip", AUTO | {"keep_tokens": 0.5, "full_from": 0.8}),
        Run("small-short", "siglip", AUTO | {"resolution": "32@0,64@0.8", "length": "12@0,24@0.8"}),
    ),
    figures=(
        Figure("retrieval", "image_to_text_r1", "image to text, R@1", ("whole", "small", "half")),
        Figure("retrieval", "text_to_image_r1", "text to image, R@1", ("whole", "small", "half")),
    ),
    budgets={
        "cpu-hour": Budget(PATCHES | {"steps": 600}, {"count": 500}),
        "gpu-10min": Budget(PATCHES | {"batch_size": 256, "steps": 1500}, {"count": 500}),
    },
)
