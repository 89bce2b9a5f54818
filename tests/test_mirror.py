"""Mirrored visits: boxes follow their pixels and tokens, and no image is mirrored whose texts name a side."""

from typing import Any

import numpy as np
import pytest
import torch
from toys import rectangle

from opensiglip.data.example import Caption, Example, Region
from opensiglip.data.fields.field import Visit
from opensiglip.data.fields.frame import Frame
from opensiglip.data.fields.mirror import mirror_tokens, names_sides
from opensiglip.data.fields.states import IMAGE, ImageStates
from opensiglip.data.text import TextPipeline

BOX = (10, 20, 40, 50)


def example(caption: str = "a box", phrase: str = "it", language: str = "en", **extras: Any) -> Example:
    region = Region(BOX, {language: phrase})
    return Example(rectangle(BOX, 90, 60), (Caption(caption, language),), (region,), extras=extras)


def visits(seen: Example, frame: Frame, count: int = 100) -> list[Visit]:
    return [Visit.draw(seen, frame, np.random.default_rng(seed), "en") for seed in range(count)]


@pytest.mark.parametrize("area", [1.0, 0.6])
def test_a_mirrored_box_lies_where_its_pixels_do(area: float) -> None:
    drawn = visits(example(), Frame(64, area, flip=0.5))
    mirrored = [visit for visit in drawn if visit.mirrored]
    assert 30 < len(mirrored) < 70
    for visit in (visit for visit in drawn if visit.regions):
        rows, columns = (visit.image[0] > 127).nonzero(as_tuple=True)
        shown = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert visit.regions[0].bbox == pytest.approx([float(side) for side in shown], abs=1.5)
    corner = visits(example(), Frame(64, flip=1.0), 1)[0].point((BOX[0], BOX[1]))
    assert corner == pytest.approx((64 - BOX[0] * 64 / 90, BOX[1] * 64 / 60)), "outlines go through it"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "the dog on the LEFT"),
        ("en", "a right-hand glove"),
        ("de", "der linke Hund"),
        ("fr", "le chien de droite"),
        ("cs", "pes vpravo"),
        ("zh-CN", "站在左边的狗"),
        ("fi", "koira"),  # a language whose words for sides are not known
    ],
)
def test_an_image_whose_texts_name_a_side_is_never_mirrored(language: str, text: str) -> None:
    for seen in (example(caption=text, language=language), example(phrase=text, language=language)):
        assert names_sides(seen)
        assert not any(visit.mirrored for visit in visits(seen, Frame(64, flip=1.0), 20))
    assert not names_sides(example("a bright, uplifting copyright notice")), "words that only hold such letters"


def test_without_flip_nothing_is_drawn_for_it() -> None:
    plain, rng = np.random.default_rng(5), np.random.default_rng(5)
    Visit.draw(example(), Frame(64), rng, "en")
    plain.integers(1)
    assert rng.random() == plain.random(), "so that earlier runs go on as they were"


def test_cached_tokens_are_mirrored_row_by_row_behind_the_summary(pipeline: TextPipeline) -> None:
    states = np.arange(11, dtype=np.float32)[:, None]  # mean and class token, 3 x 3 patches
    assert mirror_tokens(states)[:, 0].tolist() == [0, 1, 4, 3, 2, 7, 6, 5, 10, 9, 8]
    drawn = visits(example(**{IMAGE: states}), Frame(64, flip=0.5), 20)
    for visit in drawn:
        read = ImageStates().draw(visit, np.random.default_rng(0), pipeline)
        assert np.array_equal(read, mirror_tokens(states) if visit.mirrored else states)
    assert 0 < sum(visit.mirrored for visit in drawn) < 20
    assert torch.equal(ImageStates().collate([mirror_tokens(states)], pipeline)[IMAGE][0, 2], torch.tensor([4.0]))
