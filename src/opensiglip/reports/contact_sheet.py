"""`opensiglip data show`: what is in a source, in numbers and as a contact sheet."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from torchvision.transforms.v2 import functional

from opensiglip.data.example import Box, Example, Source, reason_of
from opensiglip.data.sources.registry import open_source
from opensiglip.disk import unwritten
from opensiglip.errors import UserError
from opensiglip.reports.drawing import COLORS, can_draw, caption_strip, draw_boxes

SAMPLE = 200  # examples the lengths and areas are measured on
COLUMNS, ROWS = 4, 4  # of the contact sheet
CELL, MARGIN = 320, 8  # pixels: the longer side of an image there, and what is left free around it
UNSPACED = ("ja", "th", "zh")  # languages written without spaces: counted in letters, not words
AREAS = (1, 5, 20, 50)  # % of the image: the bounds between which boxes are counted


def show(spec: str, out: str | Path | None = None, split: str = "train", languages: Sequence[str] | None = None) -> str:
    """A summary of the source, to print; with `out`, a contact sheet is written there as PNG. Raises UserError."""
    if out is not None and Path(out).suffix.lower() != ".png":
        raise UserError(f"the contact sheet is a PNG: {out} should end in .png.")
    source = open_source(spec, split=split, languages=languages)
    summary = summarize(source)
    if out is None:
        return summary
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(source).save(out)
    except OSError as error:
        raise unwritten(out, error) from None
    return f"{summary}\ncontact sheet: {out}"


def summarize(source: Source) -> str:
    """What the source says of itself, then what a sample of its examples, spread evenly, measures."""
    facts = [f"{name.replace('_', ' ')}: {fact_text(fact)}" for name, fact in source.describe().items()]
    broken = Counter[str]()
    lengths: dict[str, list[int]] = {language: [] for language in source.languages}
    sides: list[int] = []
    regions: list[int] = []
    areas: list[float] = []
    for example in read_spread(source, SAMPLE, broken):
        height, width = example.image.shape[1:]
        sides += height, width
        regions.append(len(example.regions))
        areas += (
            100 * (right - left) * (bottom - top) / (width * height)
            for left, top, right, bottom in (region.bbox for region in example.regions)
        )
        for caption in example.captions:
            parts = caption.text if caption.language in UNSPACED else caption.text.split()
            lengths.setdefault(caption.language, []).append(len(parts))
    return "\n".join(
        [
            *facts,
            "",
            f"measured on {len(regions)} examples (smallest, median, largest)",
            f"image sides in pixels: {spread_text(sides)}",
            *(
                f"{'letters' if language in UNSPACED else 'words'} in a caption, {language}: {spread_text(counts)}"
                for language, counts in lengths.items()
            ),
            f"regions on an image: {spread_text(regions)}",
            f"boxes by % of the image: {area_text(areas)}",
            f"broken images: {fact_text(dict(broken))}",
        ]
    )


def contact_sheet(source: Source) -> Image.Image:
    """Examples spread evenly over the source, each with its boxes and a caption."""
    cells = [draw_cell(example) for example in read_spread(source, COLUMNS * ROWS, Counter())]
    if not cells:
        raise UserError(f"no image of {source.name} can be decoded; check its files.")
    width, height = cells[0].size
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(cells) // COLUMNS) * height), "white")
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % COLUMNS * width, index // COLUMNS * height))
    return sheet


def draw_cell(example: Example) -> Image.Image:
    """One image, made as large as the cell is, boxes of one phrase in one colour, and its caption below."""
    height, width = example.image.shape[1:]
    scale = CELL / max(height, width)
    shape = [max(1, round(height * scale)), max(1, round(width * scale))]
    phrases = [readable(region.phrases) for region in example.regions]
    colors = {phrase: COLORS[index % len(COLORS)] for index, phrase in enumerate(dict.fromkeys(phrases))}
    picture = draw_boxes(
        functional.resize(example.image, shape, antialias=True),
        [scaled(region.bbox, scale) for region in example.regions],
        # A phrase stands once, on the first of its boxes: the others have its colour.
        ["" if phrase in phrases[:index] else phrase for index, phrase in enumerate(phrases)],
        [colors[phrase] for phrase in phrases],
    )
    caption = caption_strip(readable({caption.language: caption.text for caption in reversed(example.captions)}), CELL)
    cell = Image.new("RGB", (CELL + 2 * MARGIN, CELL + caption.height + 3 * MARGIN), "white")
    cell.paste(picture, (MARGIN + (CELL - picture.width) // 2, MARGIN + CELL - picture.height))
    cell.paste(caption, (MARGIN, CELL + 2 * MARGIN))
    return cell


def scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = box
    return left * scale, top * scale, right * scale, bottom * scale


def readable(texts: dict[str, str]) -> str:
    """Of texts by language the English one, else the first that the font can draw, else the first."""
    if "en" in texts:
        return texts["en"]
    return next(filter(can_draw, texts.values()), next(iter(texts.values()), ""))


def read_spread(source: Source, count: int, broken: Counter[str]) -> Iterator[Example]:
    """Up to `count` examples at even distances over the whole source; those that can't be read are counted."""
    count = min(count, len(source))
    for step in range(count):
        try:
            example = source.example(step * len(source) // count)
        except Exception as error:
            broken[reason_of(error)] += 1
            continue
        yield example


def fact_text(fact: Any) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{name} {fact_text(value)}" for name, value in fact.items()) or "none"
    if isinstance(fact, list | tuple):
        return ", ".join(map(fact_text, fact)) or "none"
    return f"{fact:,}" if isinstance(fact, int) else str(fact)


def spread_text(numbers: Sequence[int]) -> str:
    return f"{min(numbers)}, {median(numbers):g}, {max(numbers)}" if numbers else "none"


def area_text(areas: Iterable[float]) -> str:
    """How many boxes lie between the bounds, in percent of all boxes."""
    bins = Counter(sum(area >= bound for bound in AREAS) for area in areas)
    if not bins:
        return "none"
    names = [f"under {AREAS[0]}", *(f"{low} to {high}" for low, high in zip(AREAS, AREAS[1:], strict=False))]
    names.append(f"over {AREAS[-1]}")
    return ", ".join(f"{name}: {100 * bins[index] / bins.total():.0f} %" for index, name in enumerate(names))
