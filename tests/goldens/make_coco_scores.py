"""Prints coco_scores.json: BLEU-4 and CIDEr-D of random word salads by pycocoevalcap (1.2), which also asks for Java
but does not need it for these two.

Run once: pip install --no-deps --target DIR pycocoevalcap pycocotools
          PYTHONPATH=DIR python tests/goldens/make_coco_scores.py > tests/goldens/coco_scores.json
"""

import json
import random

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

random.seed(0)
WORDS = [
    "a",
    "an",
    "the",
    "red",
    "green",
    "apple",
    "fox",
    "box",
    "ball",
    "left",
    "right",
    "of",
    "on",
    "and",
    "two",
    "犬",
    ",",
]


def salad(longest: int) -> list[str]:
    return random.choices(WORDS, k=random.randint(0, longest))


def near(tokens: list[str]) -> list[str]:
    """The text with some words changed, dropped or doubled, as a model would have it."""
    said = []
    for token in tokens:
        said += random.choice([[token], [token], [token], [], [token, token], [random.choice(WORDS)]])
    return said


cases = []
for images, most in ((1, 1), (3, 1), (12, 5), (40, 3)):
    references = [[salad(14) or ["a"] for _ in range(random.randint(1, most))] for _ in range(images)]
    answers = [near(random.choice(some)) if random.random() < 0.8 else salad(10) for some in references]
    truth = {image: [" ".join(tokens) for tokens in some] for image, some in enumerate(references)}
    said = {image: [" ".join(tokens)] for image, tokens in enumerate(answers)}
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    cider, each = Cider().compute_score(truth, said)
    case = {"answers": answers, "references": references}
    cases.append(case | {"bleu4": bleu[3], "cider_d": float(cider), "each_cider_d": each.tolist()})
print(json.dumps(cases, ensure_ascii=False))
