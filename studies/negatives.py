"""The study of texts that nearly match an image as its negatives."""

from typing import Any

from studies.settings import AUTO, EASY, LARGER, QUICK
from studies.study import Budget, Figure, Run, Study

BARE: dict[str, Any] = AUTO | {"resolution": 64, "length": 32, "optimizer": "muon"}
NEGATIVES = Study(
    name="hard-negatives",
    question="Do texts that nearly match an image, as its negatives, teach a pairwise loss who does what to whom?",
    about=(
        "SigLIP, and the same with `--hard-negatives 1` and `3`: for each image one or three texts with a relation or "
        "place reversed, objects swapped or replaced, or a count changed, which are negatives of that image alone "
        "(NegCLIP, FG-CLIP). Equal steps; the text tower encodes two or four texts in place of one. Evaluated on "
        "held-out scenes: is the true caption more similar to the image than every text of that kind? And is retrieval "
        "as good?"
    ),
    data=EASY.format(3),
    runs=(
        Run("without", "siglip", BARE),
        Run("one", "siglip", BARE | {"hard_negatives": 1}),
        Run("three", "siglip", BARE | {"hard_negatives": 3}),
    ),
    figures=(
        Figure("compositionality", "similarity", "compositionality by similarity", against="without"),
        Figure("retrieval", "image_to_text_r1", "image to text, R@1", against="without"),
        Figure("retrieval", "text_to_image_r1", "text to image, R@1", against="without"),
    ),
    budgets={
        "cpu-hour": Budget(QUICK | {"steps": 1500}, {"count": 500}),
        "gpu-10min": Budget(LARGER | {"steps": 3000}, {"count": 500}),
    },
)
