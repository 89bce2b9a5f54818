"""Where a phrase is: boxes are drawn evenly over what the decoder believes, and the answer is where most agree."""

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.example import Box
from opensiglip.data.fields.captions import Ids, box_ids
from opensiglip.data.text import TextPipeline
from opensiglip.inference.generate import spread
from opensiglip.inference.predictor import Predictor
from opensiglip.models.model import Model
from opensiglip.types import Features

BOXES = BoxFormat(top=9)


@pytest.fixture(scope="module")
def predictor(small: Any, pipeline: TextPipeline) -> Predictor:
    torch.manual_seed(0)
    model = Model.new(small("locca").architecture, len(pipeline)).eval()
    assert model.decoder is not None
    torch.nn.init.normal_(model.decoder.vocabulary.weight, std=0.1)
    return Predictor(
        Pretrained.of(model, pipeline, name="a run", boxes=BOXES, tasks=("cap", "aref"), languages=("en",))
    )


def features(model: Predictor, images: int) -> Features:
    return model.encode(list(torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=seeded())))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_codes_fall_on_tokens_by_their_shares_and_go_on_within_them() -> None:
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(8, -1)
    places, codes = spread(logits, (torch.arange(8, dtype=torch.float64) + 0.5) / 8)
    assert places.tolist() == [0, 0, 0, 0, 2, 2, 3, 3]
    assert codes.tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875, 0.25, 0.75, 0.25, 0.75], abs=1e-6)
    assert spread(logits[:1], torch.tensor([1 - 1e-12]).double())[0].tolist() == [3]
    last_is_impossible = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert spread(last_is_impossible, torch.ones(1).double())[0].tolist() == [1], "a code that was rounded up to 1"


def test_the_texts_that_are_drawn_are_spread_as_the_decoder_believes(predictor: Predictor) -> None:
    image, prompt = features(predictor, 1), predictor.locate_prompt("a fox")
    drawn = predictor.generate(image, [prompt], images=[0], grammar=predictor.grammar, each=512)
    assert predictor.pipeline is not None
    drawn_firsts = [predictor.pipeline.text(ids).split()[0] for ids in drawn]
    firsts = {str(value): ids for ids, value in predictor.grammar.numbers[0].items() if value < BOXES.top}
    scores = torch.tensor(predictor.score(image, [(0, prompt, ids) for ids in firsts.values()])).double()
    for number, share in zip(firsts, scores.softmax(0).tolist(), strict=True):
        assert abs(drawn_firsts.count(number) - 512 * share) <= 1.01, "its share of the codes, to one"
    assert len(set(drawn_firsts)) > 3
    ordered = sorted(zip(firsts.items(), scores.softmax(0).tolist(), strict=True), key=lambda one: one[0][1])
    ends = np.cumsum([share for _, share in ordered])
    one = predictor.generate(image, [prompt], images=[0], grammar=predictor.grammar, each=1)
    assert predictor.pipeline.text(one[0]).split()[0] == ordered[int(np.searchsorted(ends, 0.5))][0][0], (
        "the middle one"
    )


def test_texts_that_end_early_leave_the_others_their_codes(predictor: Predictor) -> None:
    """Each text has its probability's share of the codes, to one, whatever its length."""
    peaked = copy.deepcopy(predictor)
    assert peaked.decoder is not None and peaked.pipeline is not None
    weight = peaked.decoder.vocabulary.weight
    image, prompt = features(peaked, 1), peaked.caption_prompt("en")
    with torch.no_grad():
        weight.mul_(40)
        often = Counter(token for ids in peaked.generate(image, [prompt], images=[0], each=64) for token in ids[1:])
        weight[peaked.pipeline.policy.eos_id] = weight[often.most_common(3)[2][0]]  # so that texts end, some soon
    drawn = peaked.generate(image, [prompt], images=[0], each=256)
    ended = Counter(ids for ids in drawn if len(prompt.prefix) + len(ids) + 1 < peaked.decoder.length)
    scores = peaked.score(image, [(0, prompt, (*ids, peaked.pipeline.policy.eos_id)) for ids in ended])
    shares = [256 * math.exp(score) for score in scores]
    assert all(abs(count - share) <= 1.01 for count, share in zip(ended.values(), shares, strict=True))
    assert len({len(ids) for ids in ended}) > 5 and ended.most_common(1)[0][1] > 8


def test_what_is_drawn_of_a_prompt_does_not_hang_on_others(predictor: Predictor) -> None:
    two, prompts = features(predictor, 2), [predictor.locate_prompt(phrase) for phrase in ("a fox", "one red apple")]
    both = predictor.generate(two, prompts, images=[1, 0], grammar=predictor.grammar, each=8)
    assert len(both) == 16 and len(set(both)) > 2
    for number, (prompt, image) in enumerate(zip(prompts, (1, 0), strict=True)):
        alone = predictor.generate(two, [prompt], images=[image], grammar=predictor.grammar, each=8)
        assert both[8 * number : 8 * number + 8] == alone
    assert predictor.write_boxes(two, prompts, images=[1, 0])[1:] == predictor.write_boxes(two, prompts[1:], images=[0])


def written(model: Predictor, *boxes: Box) -> list[Ids]:
    assert model.pipeline is not None
    return [box_ids(model.pipeline, BOXES.write(box, BOXES.top, BOXES.top)) for box in boxes]


def test_the_answer_is_the_mean_of_the_boxes_that_overlap_the_one_which_overlaps_most(predictor: Predictor) -> None:
    near: tuple[Box, ...] = ((1, 1, 5, 5), (2, 1, 6, 6), (0, 1, 5, 6))
    twice: Box = (6, 6, 9, 9)
    drawn = written(predictor, twice, *near, twice)
    assert predictor._agreed(drawn) == (written(predictor, (1, 1, 5, 6))[0], 3 / 5), "not what is drawn most often"
    nothing: list[Ids] = [(), predictor.pipeline.ids(" a fox")]  # type: ignore[union-attr]
    assert predictor._agreed([*nothing, drawn[0]]) == (drawn[0], 1 / 3)
    assert predictor._agreed(nothing) == ((), 0)


def test_a_phrase_is_located_where_boxes_agree_unless_the_caller_says_how_to_decode(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest first number belongs to a box that two of five believe in; three believe in another place."""
    image = torch.zeros(3, 9, 9, dtype=torch.uint8)
    likeliest, *others = written(predictor, (0, 0, 3, 3), (5, 5, 9, 9), (5, 4, 9, 8), (5, 6, 9, 9))

    def generate(*_: Any, each: int | None = None, **__: Any) -> list[Ids]:
        return ([likeliest, likeliest, *others] * (each // 5 + 1))[:each] if each else [likeliest]

    monkeypatch.setattr(Predictor, "generate", generate)
    found = predictor.locate(image, "a fox")
    assert found.box == (5, 5, 9, 9) and found.score == 18 / 32
    assert predictor.ask(image, "ARef: a fox :").value == (5, 5, 9, 9)
    assert predictor.locate(image, "a fox", num_beams=1).box == (0, 0, 3, 3)
