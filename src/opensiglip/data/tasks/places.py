"""Tasks that say where: referring, grounded captioning (LocCa), detection and segmentation (PaliGemma's prompts)."""

from typing import Any

import numpy as np

from opensiglip.data.example import Box, Region
from opensiglip.data.fields.field import Visit
from opensiglip.data.tasks.outline import outline, simplify
from opensiglip.data.tasks.task import Draw, Form, Part, Polygon, Task, TaskText, in_language, language_of, plain

CORNERS = 12  # of an outline as text (ours): 24 numbers leave room for the prompt in 48 tokens
NAMES = 2  # most names one detection asks for


def _one_region(visit: Visit, draw: Draw) -> tuple[str, Region] | None:
    """A region that a phrase names alone, and the phrase."""
    regions = [region for region in visit.regions if region.is_referable]
    if not regions:
        return None
    region = regions[int(draw() * len(regions))]
    return in_language(region.phrases, language_of(visit)), region


def _refer(visit: Visit, draw: Draw) -> TaskText | None:
    if (found := _one_region(visit, draw)) is None:
        return None
    phrase, region = found
    return TaskText(("ARef:",), (phrase, ":", region.bbox), truth=region.bbox, given=2)


def _describe(visit: Visit, draw: Draw) -> TaskText | None:
    if (found := _one_region(visit, draw)) is None:
        return None
    phrase, region = found
    return TaskText(("GCap:",), (region.bbox, ":", phrase), truth=phrase, given=2)


def things(visit: Visit) -> dict[str, list[Box]]:
    """What is seen and where, by name: by the sources' names where they have them, else by phrases that name it all."""
    language, found = language_of(visit), dict[str, list[Box]]()
    wanted: dict[str, int] = {}
    for region in visit.regions:
        texts = region.names or region.phrases
        if texts:
            name = in_language(texts, language)
            found.setdefault(name, []).append(region.bbox)
            wanted[name] = 0 if region.names else region.n_boxes
    return {name: boxes for name, boxes in found.items() if wanted[name] in (0, len(boxes))}


def _detect(visit: Visit, draw: Draw) -> TaskText | None:
    seen = {name: boxes for name, boxes in things(visit).items() if ";" not in name}  # which parts names
    if not seen:
        return None
    names = list(seen)
    count = min(len(names), 1 + int(draw() * NAMES))
    asked = [names.pop(int(draw() * len(names))) for _ in range(count)]
    # From top to bottom, so that there is one right text.
    truth = [(name, box) for name in asked for box in sorted(seen[name], key=lambda box: (box[1], box[0]))]
    prompt: tuple[Part, ...] = tuple(part for name in asked for part in (name, ";"))[:-1]
    answer: tuple[Part, ...] = tuple(part for name, box in truth for part in (box, name, ";"))[:-1]
    return TaskText(("detect", *prompt), answer, truth=truth)


def _read_detections(text: str, form: Form) -> list[tuple[str, Box]]:
    found: list[tuple[str, Box]] = []
    while (taken := form.boxes.take(text, form.width, form.height)) is not None:
        box, rest = taken
        name, _, text = rest.partition(";")
        found.append((name.strip(), box))
    return found


def _masks(visit: Visit) -> list[tuple[str, Any]]:
    """What can be outlined: its phrase, and its mask bool [H, W] (scenes) or corners x1, y1, x2, ... (folders)."""
    masks, language = visit.example.extras.get("masks"), language_of(visit)
    if isinstance(masks, np.ndarray):
        return [
            (in_language(region.phrases, language), masks[region.mask])
            for region in visit.regions
            if region.is_referable and region.mask is not None
        ]
    found: list[tuple[str, Any]] = []
    for one in masks if isinstance(masks, list) else ():
        label, polygons = (one.get("label"), one.get("polygons")) if isinstance(one, dict) else (None, None)
        names = {"en": label} if isinstance(label, str) else label
        if isinstance(names, dict) and names and isinstance(polygons, list) and len(polygons) == 1:
            found.append((str(in_language(names, language)), polygons[0]))
    said = [phrase for phrase, _ in found]
    return [(phrase, mask) for phrase, mask in found if said.count(phrase) == 1]


def _segment(visit: Visit, draw: Draw) -> TaskText | None:
    masks = _masks(visit)
    if not masks:
        return None
    phrase, mask = masks[int(draw() * len(masks))]
    if (points := outline(mask)) is None:
        return None
    whole = Polygon(tuple(visit.point(point) for point in points))
    return TaskText(("segment", phrase), (Polygon(simplify(whole.points, CORNERS)),), truth=whole)


def _read_polygon(text: str, form: Form) -> Polygon | None:
    points = form.boxes.read_points(text, form.width, form.height)
    return Polygon(points) if len(points) > 2 else None


def _read_box(text: str, form: Form) -> Box | None:
    return form.boxes.read(text, form.width, form.height)


PLACES = (
    Task("aref", _refer, _read_box, "box", " ARef:", places=True, prefix=("ARef:",), given=("PHRASE", ":")),
    Task("gcap", _describe, plain, "exact", " GCap:", places=True, prefix=("GCap:",), given=("BOX", ":")),
    Task("detect", _detect, _read_detections, "boxes", " detect", places=True, prefix=("detect", "NAMES")),
    Task("segment", _segment, _read_polygon, "mask", " segment", places=True, prefix=("segment", "PHRASE")),
)
