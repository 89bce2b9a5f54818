"""Held-out examples of a run: what the model writes and finds, beside the targets."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from opensiglip.data.example import Caption, Example, Region, Source
from opensiglip.evaluation.encode import EncodedExamples, encode_examples
from opensiglip.evaluation.metrics.boxes import box_iou
from opensiglip.inference.predictor import Predictor
from opensiglip.inference.text_generator import Prompt
from opensiglip.reports.drawing import as_uri, coloured

COUNT = 12


@dataclass(frozen=True)
class HeldOutSample:
    """A held-out example, and what the model made of it; None or empty where that is not among its tasks."""

    source: str  # data URI, boxes drawn
    name: str
    captions: tuple[Caption, ...]  # the true ones
    caption: str | None = None  # the model's
    phrase: str = ""  # of the region that is drawn
    iou: float | None = None  # of the model's box with the target
    box_phrase: str | None = None  # what the model says stands in the target box
    retrieved: list[tuple[str, bool]] = field(default_factory=list)  # captions nearest first; is it this example's?

    @property
    def alt(self) -> str:
        """What is to be seen, for those who can't see it."""
        boxes = f"; blue, the true box of “{self.phrase}”" if self.phrase else ""
        found = "; orange, the box that the model found" if self.iou is not None else ""
        return f"{self.captions[0].text if self.captions else 'an image without a caption'}{boxes}{found}"


def held_out_samples(model: Predictor, source: Source, count: int) -> list[HeldOutSample]:
    """The first examples of a held-out source with the model's answers to its `tasks`; without a decoder, the captions
    that it retrieves among those of `count` examples.
    """
    if model.has_decoder:
        return answered(model, encode_examples(model, source, COUNT))
    if model.has_text:
        return retrieved(model, encode_examples(model, source, count, tokens=False))
    return []


def answered(model: Predictor, encoded: EncodedExamples) -> list[HeldOutSample]:
    """A caption, decoded greedily; the box of a phrase; the phrase of that phrase's true box, greedily."""
    pipeline, boxes, tasks = model.pipeline, model.boxes, model.tasks
    assert pipeline is not None and boxes is not None
    regions = [referred_region(example) if {"aref", "gcap"} & set(tasks) else None for example in encoded.examples]
    asked = {place: region for place, region in enumerate(regions) if region is not None}

    def write(prompts: dict[int, Prompt], *, places: bool = False) -> dict[int, str]:
        asked, images = list(prompts.values()), list(prompts)
        if places:
            answers = [ids for ids, _ in model.write_boxes(encoded.features, asked, images=images)]
        else:
            answers = model.generate(encoded.features, asked, images=images)
        return {place: pipeline.text(answer) for place, answer in zip(prompts, answers, strict=True)}

    captions, found, named = {}, {}, {}
    if {"cap", "caption"} & set(tasks):
        prompt = model.unchecked_caption_prompt(next(iter(model.languages), "en"))
        captions = write(dict.fromkeys(range(len(regions)), prompt))
    if "aref" in tasks:
        prompts = {place: model.locate_prompt(phrase(region)) for place, region in asked.items()}
        found = write(prompts, places=True)
    if "gcap" in tasks:
        named = write(
            {place: model.describe_prompt(region.bbox, *encoded.size(place)) for place, region in asked.items()}
        )
    drawn = []
    for place, (example, region) in enumerate(zip(encoded.examples, regions, strict=True)):
        sample = HeldOutSample(as_uri(example.image), example.name, example.captions, captions.get(place))
        if region is not None:
            box = boxes.read(found[place], *encoded.size(place)) if place in found else None
            sample = replace(
                sample,
                source=as_uri(example.image, coloured([region.bbox], [box] if box else [])),
                phrase=phrase(region),
                iou=(box_iou(box, region.bbox) if box else 0.0) if place in found else None,
                box_phrase=named.get(place),
            )
        drawn.append(sample)
    return drawn


@torch.no_grad()
def retrieved(model: Predictor, encoded: EncodedExamples, best: int = 3) -> list[HeldOutSample]:
    """The captions nearest to each image, among those of all that was encoded."""
    owners: dict[str, set[int]] = {}
    for place, example in enumerate(encoded.examples):
        for caption in example.captions:
            if caption.language == example.captions[0].language:
                owners.setdefault(caption.text, set()).add(place)
    texts = list(owners)
    order = torch.zeros(len(encoded.examples), 0, dtype=torch.int64)
    if texts and encoded.pooled is not None:
        order = (F.normalize(encoded.pooled, dim=-1) @ model.encode_texts(texts).T).topk(min(best, len(texts)))[1]
    return [
        HeldOutSample(
            as_uri(example.image),
            example.name,
            example.captions,
            retrieved=[(texts[index], place in owners[texts[index]]) for index in order[place].tolist()],
        )
        for place, example in enumerate(encoded.examples[:COUNT])
    ]


def referred_region(example: Example) -> Region | None:
    """The first region that can be asked for: one box, and a phrase that names it."""
    return next((region for region in example.regions if region.is_referable), None)


def phrase(region: Region) -> str:
    """The region's phrase in the example's first language, as the grounding task asks for it."""
    return next(iter(region.phrases.values()))
