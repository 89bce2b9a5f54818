"""Held-out pictures: what the model says and finds, beside what is true."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from opensiglip.data.example import Caption, Example, Region, Source
from opensiglip.data.fields.captions import Ids, caption_prefix, grounded_prefix, referring_prefix
from opensiglip.evaluation.encoded import Judged, look
from opensiglip.evaluation.metrics.scores import overlap
from opensiglip.inference.box_grammar import BoxGrammar
from opensiglip.inference.generate import greedy
from opensiglip.inference.subject import Subject
from opensiglip.reports.drawing import PREDICTED, TRUE, as_uri

COUNT = 12


@dataclass(frozen=True)
class Picture:
    """A held-out example, and what the model made of it; None or empty where that is not among its tasks."""

    source: str  # data URI, boxes drawn
    name: str
    captions: tuple[Caption, ...]  # the true ones
    caption: str | None = None  # the model's
    phrase: str = ""  # of the region that is drawn
    overlap: float | None = None  # IoU of the model's box with the true one
    named: str | None = None  # what the model says stands in the true box
    retrieved: list[tuple[str, bool]] = field(default_factory=list)  # captions nearest first; is it this example's?

    @property
    def words(self) -> str:
        """What is to be seen, for those who can't see it."""
        boxes = f"; blue, the true box of “{self.phrase}”" if self.phrase else ""
        found = "; orange, the box that the model found" if self.overlap is not None else ""
        return f"{self.captions[0].text if self.captions else 'an image without a caption'}{boxes}{found}"


def pictures(subject: Subject, source: Source, judged: int) -> list[Picture]:
    """The first examples of a held-out source with the model's answers to its `tasks`; without a decoder, the captions
    that it retrieves among those of the first `judged` examples.
    """
    if subject.has_decoder:
        return answered(subject, look(subject, source, COUNT))
    if subject.has_text:
        return retrieved(subject, look(subject, source, judged, tokens=False))
    return []


def answered(subject: Subject, seen: Judged) -> list[Picture]:
    """Decoded greedily: a caption; the box of a phrase; the phrase of that phrase's true box."""
    decoder, pipeline, boxes, tasks = subject.decoder, subject.pipeline, subject.boxes, subject.tasks
    assert decoder is not None and pipeline is not None and boxes is not None
    regions = [one_region(example) if {"aref", "gcap"} & set(tasks) else None for example in seen.examples]
    asked = {place: region for place, region in enumerate(regions) if region is not None}

    def decode(prefixes: dict[int, Ids], grammar: BoxGrammar | None = None) -> dict[int, str]:
        with subject.autocast():
            places = list(prefixes)
            valid = seen.visible(places)
            answers = greedy(decoder, seen.tokens[places], list(prefixes.values()), pipeline, grammar, valid=valid)
        return {place: pipeline.text(answer) for place, answer in zip(prefixes, answers, strict=True)}

    captions, found, named = {}, {}, {}
    if {"cap", "caption"} & set(tasks):
        captions = decode(dict.fromkeys(range(len(regions)), caption_prefix(pipeline, tasks, *subject.languages[:1])))
    if "aref" in tasks:
        grammar = BoxGrammar(pipeline, boxes)
        found = decode({place: referring_prefix(pipeline, phrase(region)) for place, region in asked.items()}, grammar)
    if "gcap" in tasks:
        written = {place: boxes.write(region.bbox, *seen.size(place)) for place, region in asked.items()}
        named = decode({place: grounded_prefix(pipeline, text) for place, text in written.items()})
    drawn = []
    for place, (example, region) in enumerate(zip(seen.examples, regions, strict=True)):
        picture = Picture(as_uri(example.image), example.name, example.captions, captions.get(place))
        if region is not None:
            box = boxes.read(found[place], *seen.size(place)) if place in found else None
            picture = replace(
                picture,
                source=as_uri(example.image, [(region.bbox, TRUE)] + ([(box, PREDICTED)] if box else [])),
                phrase=phrase(region),
                overlap=(overlap(box, region.bbox) if box else 0.0) if place in found else None,
                named=named.get(place),
            )
        drawn.append(picture)
    return drawn


@torch.no_grad()
def retrieved(subject: Subject, seen: Judged, best: int = 3) -> list[Picture]:
    """The captions nearest to each image, among those of all that was seen."""
    owners: dict[str, set[int]] = {}
    for place, example in enumerate(seen.examples):
        for caption in example.captions:
            if caption.language == example.captions[0].language:
                owners.setdefault(caption.text, set()).add(place)
    texts = list(owners)
    order = torch.zeros(len(seen.examples), 0, dtype=torch.int64)
    if texts and seen.pooled is not None:
        order = (F.normalize(seen.pooled, dim=-1) @ subject.read(texts).T).topk(min(best, len(texts)))[1]
    return [
        Picture(
            as_uri(example.image),
            example.name,
            example.captions,
            retrieved=[(texts[index], place in owners[texts[index]]) for index in order[place].tolist()],
        )
        for place, example in enumerate(seen.examples[:COUNT])
    ]


def one_region(example: Example) -> Region | None:
    """The first region that can be asked for: one box, and a phrase that names it."""
    return next((region for region in example.regions if region.n_boxes == 1 and region.phrases), None)


def phrase(region: Region) -> str:
    """The region's phrase in the example's first language, as the grounding task asks for it."""
    return next(iter(region.phrases.values()))
