"""`opensiglip.load`: the same answers as the parts below it give, whatever form the image comes in."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from prefixes import caption_prefix, grounded_prefix, referring_prefix
from torch import Tensor

import opensiglip
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference.answers import Answer, Found
from opensiglip.inference.generate import Decoding, generate
from opensiglip.inference.images import find_files, load_image, load_images
from opensiglip.inference.predictor import Predictor, without_overlaps
from opensiglip.models.model import Model
from opensiglip.reports.maps import colour_map, heat_map

BOXES = BoxFormat(top=60)
TASKS = ("cap", "aref", "gcap")


def model_of(small: Any, pipeline: TextPipeline, recipe: str) -> Model:
    """A recipe's model of random weights, with a vocabulary that prefers some tokens."""
    torch.manual_seed(0)
    model = Model.new(small(recipe).architecture, len(pipeline)).eval()
    if model.decoder is not None:
        torch.nn.init.normal_(model.decoder.vocabulary.weight)
    return model


@pytest.fixture(scope="module")
def predictor(small: Any, pipeline: TextPipeline) -> Predictor:
    model = model_of(small, pipeline, "siglip2")
    return Predictor(Pretrained.of(model, pipeline, name="a run", boxes=BOXES, tasks=TASKS, languages=("en",)))


@pytest.fixture(scope="module")
def captioner(small: Any, pipeline: TextPipeline) -> Predictor:
    """A decoder without a text tower, which never saw a box."""
    model = model_of(small, pipeline, "cap")
    return Predictor(Pretrained.of(model, pipeline, name="cap", boxes=BOXES, tasks=("cap",), languages=("en", "de")))


@pytest.fixture(scope="module")
def encoder(small: Any, pipeline: TextPipeline) -> Predictor:
    """Two towers and no decoder."""
    return Predictor(Pretrained.of(model_of(small, pipeline, "siglip"), pipeline, name="siglip"))


def picture(width: int = 48, height: int = 24, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [picture(), picture(32, 32, 1), picture(20, 60, 2)]


def test_one_image_in_every_form_is_the_same_image(tmp_path: Path, predictor: Predictor) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), image, array, torch.tensor(array).permute(2, 0, 1)]
    expected = predictor.embed_images(image)
    assert expected.shape == (1, 32) and expected.norm(dim=-1) == pytest.approx(1)
    for form in forms:
        assert torch.equal(load_image(form), load_image(image))
        assert torch.equal(predictor.embed_images(form), expected)
        torch.testing.assert_close(predictor.embed_images([form, form]), expected.expand(2, -1))
    torch.testing.assert_close(predictor.embed_images(np.stack([array, array])), expected.expand(2, -1))
    assert load_image(array[..., 0]).shape == (3, 24, 48)  # grey


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as turned:
        assert torch.equal(load_image(turned), load_image(tmp_path / "a.png"))
        assert load_image(turned).shape == (3, 48, 24)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("nowhere.png", "there is no image nowhere.png"),
        (__file__, "is not a readable image"),
        (np.zeros((4, 4, 3)), "an array of float64"),
        (np.zeros((4, 4, 7), np.uint8), "is not an image"),
        (torch.zeros(3, 4, 4), "torch.float32"),
        (torch.zeros(4, 4, dtype=torch.uint8), "is not an image"),
        (7, "int is not an image"),
        ([], "no image was given"),
    ],
)
def test_what_is_no_image_is_said_to_be_none(predictor: Predictor, image: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        predictor.embed_images([image] if isinstance(image, int) else image)


def test_files_folders_and_patterns_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    names = [path.name for path in find_files([str(tmp_path / "c.webp"), str(tmp_path), str(tmp_path / "*.png")])]
    assert names == ["c.webp", "a.JPG", "b.png"]
    for nothing in (str(tmp_path / "*.gif"), str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="no image in"):
            find_files([nothing])


def test_embeddings_are_those_of_the_towers(predictor: Predictor, pipeline: TextPipeline) -> None:
    vision = predictor.pretrained.model.vision
    pixels = torch.stack([predictor.frame.apply(opensiglip_example(image), None)[0] for image in PICTURES])
    with torch.no_grad():
        pooled = vision(pixels.float() / 127.5 - 1).pooled
        ids = torch.from_numpy(np.stack([pipeline.fixed(text) for text in ("a fox", "an apple")]))
        texts = predictor.pretrained.model.text(ids).pooled
    torch.testing.assert_close(predictor.embed_images(PICTURES), F.normalize(pooled, dim=-1))
    torch.testing.assert_close(predictor.embed_texts(["a fox", "an apple"]), F.normalize(texts, dim=-1))
    scores = predictor.classify(PICTURES, ["a fox", "an apple"])
    logits = (
        math.exp(predictor.logit_scale)
        * predictor.embed_images(PICTURES)
        @ predictor.embed_texts(["a fox", "an apple"]).T
    )
    for row, logit in zip(scores, logits + predictor.logit_bias, strict=True):
        assert row == pytest.approx(dict(zip(["a fox", "an apple"], logit.sigmoid().tolist(), strict=True)))
        assert list(row.values()) == sorted(row.values(), reverse=True)
    assert predictor.classify(PICTURES[0], ["a fox", "an apple"]) == pytest.approx(scores[0])
    assert predictor.classify(PICTURES[0], "a fox") == pytest.approx({"a fox": scores[0]["a fox"]})


def test_labels_exclude_each_other_after_a_softmax(small: Any, pipeline: TextPipeline) -> None:
    clip, labels = model_of(small, pipeline, "clip"), ["a fox", "an apple", "a tree"]
    predictor = Predictor(Pretrained.of(clip, pipeline, name="clip"))
    assert predictor.logit_bias is None and float(clip.logit_bias) == 0
    with torch.no_grad():
        cosines = predictor.embed_images(PICTURES[0]) @ predictor.embed_texts(labels).T
        expected = (clip.logit_scale.exp() * cosines).softmax(-1)[0]
    assert predictor.classify(PICTURES[0], labels) == pytest.approx(dict(zip(labels, expected.tolist(), strict=True)))


def opensiglip_example(image: Image.Image) -> Any:
    from opensiglip.data.example import Example

    return Example(load_image(image), ())


def tokens(predictor: Predictor, images: Sequence[Image.Image]) -> Tensor:
    return predictor._encode(load_images(list(images))).tokens


def test_a_decoder_alone_classifies_by_how_likely_each_label_is(captioner: Predictor, pipeline: TextPipeline) -> None:
    labels = ["a fox", "a red apple and a fox"]
    assert captioner.logit_scale is None and captioner.logit_bias is None
    scores = captioner.classify(PICTURES[0], labels)
    assert sum(scores.values()) == pytest.approx(1)
    sums = []
    for label in labels:
        ids = [*pipeline.ids(f" {label}"), pipeline.policy.eos_id]
        sums.append(float(log_likelihood(captioner, PICTURES[0], (), ids).sum()))
    expected = torch.tensor(sums).softmax(0).tolist()
    assert scores == pytest.approx(dict(zip(labels, expected, strict=True)), abs=1e-5)


def log_likelihood(predictor: Predictor, image: Image.Image, prefix: Sequence[int], ids: Sequence[int]) -> Tensor:
    """log p of each of the ids behind the prefix, by one plain pass."""
    decoder, pad = predictor.decoder, predictor.pipeline.policy.pad_id
    inputs = torch.tensor([[pad, *prefix, *ids[:-1]]])
    zeros = torch.zeros_like(inputs)
    with torch.no_grad():
        hidden = decoder(inputs, torch.arange(inputs.shape[1])[None], zeros, zeros.bool(), tokens(predictor, [image]))
        return decoder.vocabulary(hidden[0, len(prefix) :]).log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]


@pytest.mark.parametrize("how", [{"do_sample": True, "temperature": 9.0, "seed": 0}, {"num_beams": 4}])
def test_nothing_but_boxes_is_written_along_the_grammar(
    predictor: Predictor, pipeline: TextPipeline, how: dict[str, Any]
) -> None:
    phrases = ["fox", "a red apple", "an owl"] * 8
    prompts = [predictor.locate_prompt(phrase) for phrase in phrases]
    features = predictor._encode(load_images(PICTURES * 8))
    written = predictor.generate(features, prompts, Decoding(**how), grammar=predictor.grammar)
    boxes = [BOXES.read(pipeline.text(ids), 60, 60) for ids in written]
    assert None not in boxes and len(set(boxes)) > 1
    assert all(text == BOXES.write(box, 60, 60) for text, box in zip(map(pipeline.text, written), boxes, strict=True))


def test_a_box_is_in_pixels_of_the_image_given_and_scored(predictor: Predictor, pipeline: TextPipeline) -> None:
    image, prefix = PICTURES[0], referring_prefix(pipeline, "a red apple")
    found = predictor.locate(image, "a red apple")
    encoded, prompts = predictor._encode(load_images(image)), [predictor.locate_prompt("a red apple")]
    [(ids, score)] = predictor.write_boxes(encoded, prompts)
    assert found.phrase == "a red apple" and found.box == BOXES.read(pipeline.text(ids), 48, 24)
    assert found.score == score
    greedy = predictor.locate(image, "a red apple", num_beams=1)
    (ids,) = predictor.generate(encoded, prompts, grammar=predictor.grammar)
    likely = log_likelihood(predictor, image, prefix, ids)
    assert greedy.score == pytest.approx(math.exp(likely.mean()), rel=1e-4)
    assert predictor.locate([image, image], "a red apple") == [found, found]


def test_captions_and_descriptions_are_greedy_by_default(predictor: Predictor, pipeline: TextPipeline) -> None:
    decoder, memory = predictor.decoder, tokens(predictor, PICTURES)
    cap = [caption_prefix(pipeline, TASKS)] * 3
    expected = [pipeline.text(ids) for ids in generate(decoder, memory, cap, pipeline)]
    assert predictor.caption(PICTURES) == expected
    assert predictor.caption(PICTURES[1]) == expected[1] == predictor.caption(PICTURES[1], language="en")
    prefix = grounded_prefix(pipeline, BOXES.write((12, 6, 36, 18), 48, 24))
    assert prefix == grounded_prefix(pipeline, "15 15 45 45")
    named = pipeline.text(generate(decoder, memory[:1], [prefix], pipeline)[0])
    assert (
        predictor.describe(PICTURES[0], (12, 6, 36, 18))
        == named
        == predictor.ask(PICTURES[0], "GCap: 15 15 45 45 :").text
    )


def test_tasks_are_asked_in_their_own_words(predictor: Predictor, pipeline: TextPipeline) -> None:
    image = PICTURES[0]
    assert predictor.ask(image, "Cap:").text == predictor.caption(image)
    asked = predictor.ask(image, " aref:  a red apple : ")
    assert asked.value == BOXES.read(asked.text, 48, 24) == predictor.locate(image, "a red apple").box
    free = generate(predictor.decoder, tokens(predictor, [image]), [pipeline.ids(" ARef:")], pipeline)[0]
    assert predictor.ask(image, "ARef:") == Answer(pipeline.text(free), pipeline.text(free))
    for wrong, said in {
        "ocr": 'trained on "Cap:", "ARef: PHRASE :", "GCap: BOX :"',
        "": "asks for no task",
        "GCap: here :": "'here' is not a box",
        "GCap: 1 2 3 900 :": "is not a box",
    }.items():
        with pytest.raises(UserError, match=said):
            predictor.ask(image, wrong)


def test_proposals_are_phrases_with_boxes_best_first_without_doubles(predictor: Predictor) -> None:
    found = predictor.propose(PICTURES, count=3)
    assert len(found) == 3 and found[1] == predictor.propose(PICTURES[1], count=3)
    for proposals, (width, height) in zip(found, [(48, 24), (32, 32), (20, 60)], strict=True):
        assert 1 <= len(proposals) <= 3
        assert [p.score for p in proposals] == sorted((p.score for p in proposals), reverse=True)
        for proposal in proposals:
            assert proposal.phrase and 0 <= proposal.score <= 1
            x1, y1, x2, y2 = proposal.box
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


def test_where_no_phrase_is_written_nothing_is_proposed(
    predictor: Predictor, pipeline: TextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every beam ends at the colon, before which stands nothing, or what is no text."""
    colon = pipeline.ids(" :")[:-1]  # a beam leaves out the token that it ends at
    written = [[colon], [colon, (pipeline.policy.pad_id, *colon)], [(*pipeline.ids(" fox"), *colon)]]
    monkeypatch.setattr("opensiglip.inference.predictor.beam_search", lambda *_, **__: written)
    one, two, three = predictor.propose(PICTURES)
    assert one == two == [] and [found.phrase for found in three] == ["fox"]


def test_of_overlapping_proposals_the_better_one_stays() -> None:
    near, far = Found("fox", (0, 0, 10, 10), 0.5), Found("apple", (50, 50, 60, 60), 0.4)
    assert without_overlaps([far, Found("red fox", (1, 0, 11, 10), 0.3), near]) == [near, far]
    assert without_overlaps([]) == []


def test_what_a_model_cannot_do_is_said_in_a_sentence(
    predictor: Predictor, captioner: Predictor, encoder: Predictor
) -> None:
    image = PICTURES[0]
    for call, said in [
        (lambda: encoder.caption(image), "siglip has no decoder, so it can't caption; give a run of"),
        (lambda: encoder.locate(image, "fox"), "has no decoder, so it can't locate"),
        (lambda: captioner.locate(image, "fox"), "cap was trained on cap and can't locate"),
        (lambda: captioner.describe(image, (0, 0, 9, 9)), "can't describe a box"),
        (lambda: captioner.embed_texts(["fox"]), "has no text tower"),
        (lambda: captioner.similarity(image, "fox"), "can't compare patches with texts"),
        (lambda: captioner.caption(image, language="fr"), "never saw 'fr'; its captions are in en, de"),
        (
            lambda: captioner.caption(image, language="de"),
            "cap saw en, de without a language prefix, so none can be chosen; leave it out, or train with",
        ),
        (lambda: predictor.caption(image, language="de"), "never saw 'de'"),
        (lambda: predictor.describe(image, (40, 4, 90, 9)), "is not a box of an image of 48 x 24 pixels"),
        (lambda: predictor.describe(image, (9, 9, 3, 3)), "box of no area"),
        (lambda: predictor.describe(image, (1, 2, 3)), "not four finite numbers"),
        (lambda: predictor.locate(image, "fox " * 60), "tokens leaves no room"),
        (lambda: predictor.locate(image, "fox", max_new_tokens=1), "^max_new_tokens=1 leaves no room for a box"),
        (lambda: predictor.classify(image, []), "no labels"),
        (lambda: predictor.embed_texts([]), "no texts"),
        (lambda: predictor.propose(image, count=0), "count=0 is below 1"),
        (
            lambda: predictor.caption(image, beams=4),
            "beams is not an option of text generation; there are num_beams, do_sample",
        ),
        (lambda: predictor.caption(image, num_beams=0), "num_beams=0 is below 1"),
        (lambda: predictor.caption(image, do_sample=True, temperature=0.0), "temperature=0.0 is not above 0"),
        (lambda: predictor.caption(image, do_sample=True, top_p=1.5), r"top_p=1.5 is not in \(0, 1\]"),
        (lambda: predictor.caption(image, do_sample=True, num_beams=4), "exclude each other"),
        (lambda: predictor.search(".", "a fox", image=image), "give one of the two"),
        (lambda: opensiglip.load("nowhere-at-all"), "nowhere-at-all"),
    ]:
        with pytest.raises(UserError, match=said):
            call()


def test_out_of_memory_is_said_in_a_sentence(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(predictor.frame.__class__, "apply", full)
    with pytest.raises(UserError, match="^the GPU ran out of memory; give fewer images at once"):
        predictor.embed_images(PICTURES)


def test_an_export_is_loaded_whole(predictor: Predictor, small: Any, pipeline: TextPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    about = {"text": pipeline.save_pretrained(folder), "boxes": str(BOXES), "tasks": list(TASKS), "languages": ["en"]}
    model_of(small, pipeline, "siglip2").save_pretrained(folder, about)
    for spec in (tmp_path / "run", folder):
        loaded = opensiglip.load(spec)
        assert loaded.caption(PICTURES) == predictor.caption(PICTURES)
        assert loaded.locate(PICTURES[0], "fox") == predictor.locate(PICTURES[0], "fox")
        assert torch.equal(loaded.embed_texts(["fox"]), predictor.embed_texts(["fox"]))


def test_features_lie_in_a_grid_as_the_patches_do(predictor: Predictor) -> None:
    grid = predictor.features(PICTURES)
    assert grid.shape == (3, 4, 4, 32)
    assert torch.equal(grid.flatten(1, 2), tokens(predictor, PICTURES))
    near = predictor.similarity(PICTURES, "a fox")
    assert near.shape == (3, 4, 4) and near.abs().max() <= 1.0001


def test_maps_show_a_patch_where_it_lies() -> None:
    colours = torch.zeros(2, 2, 3)
    colours[0, 1] = torch.tensor([1.0, 0.0, 0.0])
    shown = np.asarray(colour_map(colours, 8))
    assert shown.shape == (8, 8, 3) and shown[1, 6].tolist() == [255, 0, 0] and shown[6, 6].tolist() == [0, 0, 0]
    heat = np.asarray(heat_map(torch.zeros(3, 16, 24, dtype=torch.uint8), colours[..., 0]))
    assert heat.shape == (16, 24, 3)
    assert np.unravel_index(heat.sum(-1).argmax(), (16, 24))[1] > 12 and heat[:8, 12:].sum() > 2 * heat[8:, :12].sum()
