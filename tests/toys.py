"""What several tests of the core share: a GPT-2-like tokenizer, coloured rectangles, a model of two layers."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor

from opensiglip.data.example import BrokenExample, Caption, Example, Region, Source
from opensiglip.data.scenes.source import open_scenes
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape

SHAPE = Shape(width=32, depth=2, mlp=64, heads=4)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def like_gpt2(folder: Path) -> Path:
    """A tokenizer.json as GPT-2's: byte-level, digits merged into numbers, an end of text but no padding."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = (" ".join(map(str, range(start, 501, 7))) for start in range(7))
    tokenizer.train_from_iterator([*numbers, *islice(open_scenes("scenes").texts(), 300)], trainer)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def small_model(*, text: bool = False, vocabulary: int = 96, length: int = 12, seed: int = 0) -> Model:
    """Vision, decoder and perhaps text, freshly initialised but with a vocabulary that prefers some tokens."""
    torch.manual_seed(seed)
    model = Model.new(Architecture(32, 8, length, SHAPE, SHAPE if text else None, SHAPE), vocabulary)
    assert model.decoder is not None
    torch.nn.init.normal_(model.decoder.vocabulary.weight)
    return model


def rectangle(box: tuple[int, int, int, int], width: int, height: int, colour: str = "red") -> Tensor:
    """A black image [3, height, width] with a filled box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None, None]
    return image


class Rectangles(Source):
    """One coloured rectangle an example, its place and colour drawn by its index; some can't be read."""

    def __init__(self, count: int, broken: frozenset[int] = frozenset(), name: str = "rectangles") -> None:
        self.count, self.broken, self.name = count, broken, name
        self.languages: tuple[str, ...] = ("en", "de")
        self.skipped = Counter[str]()

    def __len__(self) -> int:
        return self.count

    def example(self, index: int, language: str | None = None) -> Example:
        if index in self.broken:
            raise BrokenExample("truncated image")
        rng = np.random.default_rng(index)
        width, height = (int(x) for x in rng.integers(40, 80, 2))
        x1, y1 = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
        box = (x1, y1, x1 + int(rng.integers(10, 20)), y1 + int(rng.integers(10, 20)))
        colour = list(COLOURS)[index % len(COLOURS)]
        captions = (Caption(f"a {colour} box, number {index}"), Caption(f"{colour} nummer {index}", "de"))
        phrases = {"en": f"the {colour} box", "de": f"die {colour} box"}
        return Example(rectangle(box, width, height, colour), captions, (Region(box, phrases),), f"{self.name}/{index}")

    def texts(self) -> Iterator[str]:
        return (caption.text for index in range(self.count) for caption in self.example(index).captions)

    def describe(self) -> dict[str, Any]:
        return {"kind": "rectangles"}
