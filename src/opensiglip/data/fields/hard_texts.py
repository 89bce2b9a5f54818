"""Hard negatives: texts that differ from an image's caption in one thing, and are false."""

from collections.abc import Sequence

import numpy as np
import torch

from opensiglip.data.example import Example
from opensiglip.data.fields.field import Field, Visit
from opensiglip.data.scenes.contrasts import of_scene
from opensiglip.data.scenes.phrases import Placed
from opensiglip.data.text import TextPipeline
from opensiglip.types import Batch

Drawn = tuple[np.ndarray, np.ndarray]


class HardTexts(Field):
    """hard_text [B, K, L] int64 and has_hard_text [B, K] bool: K of an example's hard negatives, drawn anew each visit.

    They come from the row's `negative_caption`, or from a scene's grammar in the caption's language. An example with
    fewer has padding in their place; one without a caption has none.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def draw(self, visit: Visit, rng: np.random.Generator, pipeline: TextPipeline) -> Drawn:
        order = rng.random(self.count), int(rng.integers(2**31))
        language = visit.caption.language if visit.caption else ""
        known = hard_texts(visit.example, language, order[1]) if visit.caption else []
        texts = []
        for number in order[0]:
            texts += [known.pop(int(number * len(known)))] if known else []
        missing = self.count - len(texts)
        has = np.arange(self.count) < len(texts)
        return np.stack([pipeline.fixed(text) for text in texts + [""] * missing]), has

    def collate(self, drawn: Sequence[Drawn], pipeline: TextPipeline) -> Batch:
        texts, has = zip(*drawn, strict=True)
        return {
            "hard_text": torch.from_numpy(np.stack(texts)),
            "has_hard_text": torch.from_numpy(np.stack(has)),
        }


def hard_texts(example: Example, language: str, seed: int) -> list[str]:
    """All that an example has, each once, in a fixed order for a seed."""
    if "scene_plan" not in example.extras:
        return list(example.extras.get("negative_caption", ()))
    scene, plan = example.extras["scene_plan"]
    absent = example.extras.get("absent")
    strangers = [Placed("", absent, (0.0, 0.0, 0.0, 0.0))] if absent else []
    found = [text for one in of_scene(scene, plan, strangers, (language,), seed) for text in one.negatives]
    return list(dict.fromkeys(found))
