"""What is said of a scene: a plan that says nothing untrue of the boxes, and its words in 14 languages.

A plan is independent of language and holds every random choice, so one scene says the same in each of them. Case and
gender are not modelled: each language's templates are worded so that a name stands in them as the dictionary has it
("fuchs weiter links als roter apfel", "морда лисицы левее, чем красное яблоко").
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from opensiglip.data.example import Box
from opensiglip.data.scenes.languages import GRAMMARS, PLACES, indefinite, two

PLAIN = 0.7  # share of phrases about a drawing that occurs once which are its bare name

_AMONG_TWINS = {"left": "left", "right": "right", "above": "top", "below": "bottom", "": ""}

Draw = Callable[[], float]  # the next number of the scene's generator, uniform in [0, 1)


@dataclass(frozen=True)
class Placed:
    """A drawing where it stands."""

    code: str
    names: Mapping[str, str]  # language -> name
    box: Box


@dataclass(frozen=True)
class Clause:
    """One thing said: a name, a name and where it is, or a name and where it is from another's point of view."""

    subject: int  # index in the scene
    place: str = ""  # with a landmark: left, right, above or below; without: one of PLACES, or none said
    landmark: int | None = None
    boxes: int = 1  # how many boxes the words fit


@dataclass(frozen=True)
class Plan:
    """All that is said of a scene."""

    caption: tuple[Clause, ...]  # every drawing in one clause
    phrases: tuple[Clause, ...]  # one per drawing, in the scene's order
    style: int  # picks among wordings that mean the same


def relation(box: Box, other: Box) -> str:
    """Where `box` is, seen from `other`: left, right, above, below; "" unless a straight gap and the centres agree."""
    across = (box[0] + box[2] - other[0] - other[2]) / 2
    down = (box[1] + box[3] - other[1] - other[3]) / 2
    if abs(across) > abs(down):
        return "left" if box[2] <= other[0] else "right" if box[0] >= other[2] else ""
    return "above" if box[3] <= other[1] else "below" if box[1] >= other[3] else ""


def part_of_image(box: Box, pixels: int) -> str:
    """Which of the nine PLACES the centre of `box` is in; "" near the borders between them."""
    across, down = (box[0] + box[2]) / 2 / pixels, (box[1] + box[3]) / 2 / pixels
    row, column = _third(down, "top", "bottom"), _third(across, "left", "right")
    if not row or not column:
        return ""
    return "middle" if row == column else " ".join(word for word in (row, column) if word != "middle")


def plan(scene: Sequence[Placed], pixels: int, draw: Draw) -> Plan:
    """Decide what to say of `scene`, which has each drawing at most twice. Draws 2 numbers a drawing and 1 more."""
    twin = _twins(scene)
    phrases = tuple(_phrase(scene, index, twin, pixels, draw) for index in range(len(scene)))
    return Plan(_caption(scene, twin, pixels, draw), phrases, int(draw() * 720))


def render_caption(plan: Plan, scene: Sequence[Placed], language: str) -> str:
    """The caption of `plan` in `language`, one line."""
    grammar = GRAMMARS[language]
    said = [_words(clause, scene, language, 0, caption=True) for clause in plan.caption]
    text = said[-1] if len(said) == 1 else grammar.comma.join(said[:-1]) + grammar.last + said[-1]
    return _polish(grammar.frames[plan.style % len(grammar.frames)].format(text), language)


def render_phrase(clause: Clause, scene: Sequence[Placed], language: str, style: int) -> str:
    """The referring phrase `clause` in `language`."""
    return _polish(_words(clause, scene, language, style, caption=False), language)


def _words(clause: Clause, scene: Sequence[Placed], language: str, style: int, *, caption: bool) -> str:
    grammar = GRAMMARS[language]
    name = scene[clause.subject].names[language]
    if caption and clause.boxes == 2:
        return two(name) if language == "en" else grammar.pair.format(a=name)
    subject = indefinite(name) if caption and language == "en" else name
    if clause.landmark is not None:
        landmark = scene[clause.landmark].names[language]
        if language == "en":
            landmark = indefinite(landmark) if caption else f"the {landmark}"
        templates = grammar.relations[clause.place]
        return templates[style % len(templates)].format(a=subject, b=landmark)
    if clause.place:
        template = grammar.placed[style % len(grammar.placed)]
        return template.format(a=subject, at=grammar.places[PLACES.index(clause.place)], place=clause.place)
    return subject


def _caption(scene: Sequence[Placed], twin: Mapping[int, int], pixels: int, draw: Draw) -> tuple[Clause, ...]:
    """Each drawing once, left to right, so that naming says where they are; up to two relations, some places."""
    order = sorted(range(len(scene)), key=lambda index: scene[index].box[0] + scene[index].box[2])
    left = [index for index in order if twin.get(index, index) >= index]  # a pair is spoken of as its first
    said, relations = [], 0
    while left:
        index, choice = left.pop(0), draw()
        if index in twin:
            said.append(Clause(index, boxes=2))
            continue
        if choice < 0.6 and relations < 2:
            for other in left:
                place = relation(scene[index].box, scene[other].box)
                if place and other not in twin:
                    said.append(Clause(index, place, other))
                    left.remove(other)
                    relations += 1
                    break
            else:
                said.append(Clause(index))
        else:
            said.append(Clause(index, part_of_image(scene[index].box, pixels) if choice > 0.8 else ""))
    return tuple(said)


def _phrase(scene: Sequence[Placed], index: int, twin: Mapping[int, int], pixels: int, draw: Draw) -> Clause:
    """Words that fit this box alone; of twins with no clear order, the name, which fits both."""
    box, choice = scene[index].box, draw()
    if index in twin:
        place = _AMONG_TWINS[relation(box, scene[twin[index]].box)]
        return Clause(index, place, boxes=1 if place else 2)
    if choice < PLAIN:
        return Clause(index)
    if choice < (1 + PLAIN) / 2:
        return Clause(index, part_of_image(box, pixels))
    for step in range(1, len(scene)):
        other = (index + step) % len(scene)
        place = relation(box, scene[other].box)
        if place and other not in twin:
            return Clause(index, place, other)
    return Clause(index)


def _twins(scene: Sequence[Placed]) -> dict[int, int]:
    """Index -> index of the other one of the same drawing."""
    seen: dict[str, int] = {}
    twin: dict[int, int] = {}
    for index, placed in enumerate(scene):
        other = seen.setdefault(placed.code, index)
        if other != index:
            twin |= {index: other, other: index}
    return twin


def _third(at: float, low: str, high: str) -> str:
    return low if at < 0.36 else high if at > 0.64 else "middle" if 0.42 < at < 0.58 else ""


def _polish(text: str, language: str) -> str:
    """Sound changes between words: French "de avion" is "d’avion", Spanish "y iglú" is "e iglú"."""
    pattern, replacement = GRAMMARS[language].polish
    return re.sub(pattern, replacement, text) if pattern else text
