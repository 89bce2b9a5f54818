"""The study of photographs: runs on towers that others trained."""

from typing import Any

from studies.settings import AUTO
from studies.study import Budget, Figure, Run, Study

DECODER: dict[str, Any] = {
    "distill_start": 1.0,
    "parallel": 0.0,
    "boxes": "y1 x1 y2 x2:31",
    "image_positions": True,
    "decoder_depth": 3,
    "decoder_width": 192,
}
LOCKED, CAPTIONS, BOXES = {"freeze": "both"}, DECODER | {"regions": 0}, DECODER | {"regions": 3}
ADAPTED: dict[str, Any] = {"freeze": "text", "lora": 8, "tower_lr": 0.1}
DISTILLED: dict[str, Any] = {"distill_start": 0.8, "prototypes": 1024}  # for thousands of photographs, not billions
ORDER, DISTILLATION = ("sigmoid", "captions", "boxes", "lora", "tuned"), (("lora", "distilled"),)
ON_TOWERS: dict[str, Any] = AUTO | {"size": "S/16", "length": 40, "optimizer": "muon", "lr": 0.002}
PHOTOGRAPHS = Study(
    name="photographs",
    question="On few photographs: which terms help, and should pretrained towers be frozen, adapted or tuned?",
    about=(
        "All runs begin with the same pretrained towers. `sigmoid`, `captions` and `boxes` keep both frozen: the first "
        "learns heads alone, the second a decoder of captions too, the third one of captions and boxes, as SigLIP 2. "
        "`lora` and `tuned` are `boxes` with an image tower that learns, too: by matrices of rank 8, or whole, both at "
        "a tenth of the rate. `distilled` is `lora` with self-distillation and masked prediction in the last fifth."
    ),
    data="",
    runs=(
        Run("sigmoid", "siglip", LOCKED),
        Run("captions", "siglip2", LOCKED | CAPTIONS),
        Run("boxes", "siglip2", LOCKED | BOXES),
        Run("lora", "siglip2", BOXES | ADAPTED),
        Run("tuned", "siglip2", BOXES | {"freeze": "text", "tower_lr": 0.1}),
        Run("distilled", "siglip2", BOXES | ADAPTED | DISTILLED),
    ),
    figures=(
        Figure("retrieval", "image_to_text_r1", "image to text, R@1", ORDER, pairs=DISTILLATION),
        Figure("retrieval", "text_to_image_r1", "text to image, R@1", ORDER, pairs=DISTILLATION),
        Figure("captioning", "cider_greedy", "captions, CIDEr", ORDER[1:], pairs=DISTILLATION),
        Figure("grounding", "accuracy", "phrases found", ORDER[2:], pairs=DISTILLATION),
    ),
    budgets={
        "cpu-hour": Budget(ON_TOWERS | {"batch_size": 32, "steps": 300, "resolution": 112}, {"count": 300}),
        "gpu-10min": Budget(ON_TOWERS | {"batch_size": 256, "steps": 1000}, {"count": 500}),
    },
    on_towers=True,
)
