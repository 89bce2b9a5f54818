"""A caption that is true of the image, beside texts that differ from it in one thing and are not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opensiglip.data.scenes.phrases import Clause, Placed, Plan, render_caption

_PAIRS = (("left", "right"), ("above", "below"), ("top", "bottom"), ("top left", "bottom right"))
OPPOSITE = {a: b for some in (*_PAIRS, ("top right", "bottom left")) for a, b in (some, some[::-1])}


@dataclass(frozen=True)
class Contrast:
    """A caption and its negatives; `kind` says in what they differ."""

    kind: str
    caption: str
    negatives: tuple[str, ...]
    language: str = "en"


def of_scene(
    scene: Sequence[Placed], plan: Plan, elsewhere: Sequence[Placed], languages: Sequence[str], seed: int
) -> Iterator[Contrast]:
    """At most one pair of each kind, in each of the languages; named after SugarCrepe's kinds where it has them.

    Each negative is false by the boxes: a relation holds only across a gap, so its opposite and its converse do not; no
    drawing stands twice where the plan speaks of one; a drawing that takes another's place stands nowhere here.
    """
    for kind, clause, other in negatives(plan):
        for language in languages:
            caption, negative = (render_caption(one, scene, language) for one in (plan, _instead(plan, clause, other)))
            yield Contrast(kind, caption, (negative,), language)
    codes = {placed.code for placed in scene}
    strangers = [placed for placed in elsewhere if placed.code not in codes]
    if strangers:
        rng = np.random.default_rng(seed)
        place = plan.caption[int(rng.integers(len(plan.caption)))].subject
        stranger = strangers[int(rng.integers(len(strangers)))]
        changed = [
            replace(placed, names=stranger.names) if placed.code == scene[place].code else placed for placed in scene
        ]
        for language in languages:
            caption, negative = (render_caption(plan, one, language) for one in (scene, changed))
            yield Contrast("replace object", caption, (negative,), language)


def negatives(plan: Plan) -> Iterator[tuple[str, Clause, Clause]]:
    """What differs, a clause of the caption, and the clause that is false in its place; the first clause of a kind."""
    clauses = plan.caption
    related = next((clause for clause in clauses if clause.landmark is not None), None)
    if related is not None and related.landmark is not None:
        yield "replace relation", related, replace(related, place=OPPOSITE[related.place])
        yield "swap objects", related, replace(related, subject=related.landmark, landmark=related.subject)
    placed = next((clause for clause in clauses if clause.landmark is None and clause.place in OPPOSITE), None)
    if placed is not None:
        yield "replace place", placed, replace(placed, place=OPPOSITE[placed.place])
    single = next((c for c in clauses if c.landmark is None and not c.place and c.boxes == 1), None)
    if single is not None:
        yield "change count", single, replace(single, boxes=2)


def _instead(plan: Plan, clause: Clause, other: Clause) -> Plan:
    return replace(plan, caption=tuple(other if one is clause else one for one in plan.caption))
