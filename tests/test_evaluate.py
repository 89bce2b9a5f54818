"""Benchmarks on models whose answers are known, and on the command line as users run them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Run, Small
from oracle import Oracle
from PIL import Image, ImageDraw

from opensiglip.apps.cli import main
from opensiglip.apps.evaluate import evaluate
from opensiglip.data.example import Caption, Example, Region, Source
from opensiglip.data.fields.frame import Frame
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import Context, NotApplicable, hits_and_misses
from opensiglip.evaluation.benchmarks.open_vocabulary import image_iou, open_vocabulary
from opensiglip.evaluation.benchmarks.probes import probes
from opensiglip.evaluation.benchmarks.retrieval import retrieval
from opensiglip.evaluation.benchmarks.segmentation_probe import by_nearest_patches, most_frequent, patches
from opensiglip.evaluation.benchmarks.token_variance import token_variance
from opensiglip.evaluation.benchmarks.zero_shot import zero_shot
from opensiglip.evaluation.class_names import canonical, class_embeddings, class_name, templates
from opensiglip.evaluation.encode import EncodedExamples, encode_examples
from opensiglip.evaluation.labels import label, things
from opensiglip.evaluation.run import BENCHMARKS
from opensiglip.models.model import Model
from opensiglip.types import Features

SIDE = 32
INKS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def oracle(**changes: Any) -> Oracle:
    """A model that sees mean colours and reads colour words: images, patches of 8 pixels and texts in one space."""

    def see(pixels: torch.Tensor) -> Features:
        tokens = F.avg_pool2d(pixels + 1, 8).flatten(2).mT
        return Features(tokens.mean(1), tokens)

    def read(texts: Any) -> torch.Tensor:
        return torch.tensor([[float(color in text) for color in INKS] for text in texts]) + 1e-3

    settings = {"text": read, "to_text": lambda tokens: tokens} | changes
    device = torch.device("cpu")
    return Oracle("oracle", Frame(SIDE), device, lambda: torch.autocast("cpu", enabled=False), see, **settings)


def square(color: str, left: int, extras: dict[str, Any] | None = None) -> Example:
    image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    image[:, 8:24, left : left + 8] = torch.tensor(INKS[color], dtype=torch.uint8)[:, None, None]
    polygon = [left, 8, left + 7, 8, left + 7, 23, left, 23]
    told = {"label": color, "masks": [{"label": color, "polygons": [polygon]}], "size": (SIDE, SIDE)}
    box = (float(left), 8.0, left + 8.0, 24.0)
    captions = (Caption(f"a {color} square"), Caption(f"{color}, a square"), Caption(f"ein {color} quadrat", "de"))
    return Example(image, captions, (Region(box, {"en": f"the {color} one"}),), extras=told | (extras or {}))


def encoded(subject: Oracle, examples: list[Example]) -> EncodedExamples:
    seen = subject.encode(torch.stack([example.image for example in examples]))
    return EncodedExamples(examples, seen.tokens, seen.pooled)


@pytest.fixture
def squares() -> list[Example]:
    return [square("red", 0), square("green", 8), square("blue", 16)]


def test_a_model_that_matches_is_right_in_every_language(squares: list[Example]) -> None:
    found = retrieval(oracle(), encoded(oracle(), squares), Context())
    assert found.metrics["captions"] == 9 and found.metrics["images"] == 3
    for way in ("image_to_text", "text_to_image"):
        assert found.metrics[f"{way}_r1"] == found.metrics["languages"]["de"][f"{way}_r5"] == 1
    assert all(sample.correct for sample in found.samples)
    blind = oracle(text=lambda texts: torch.ones(len(texts), 3))
    assert retrieval(blind, encoded(blind, squares), Context()).metrics["text_to_image_r1"] == pytest.approx(1 / 3)


def test_a_caption_finds_its_image_s_english_ones_where_the_two_languages_agree(squares: list[Example]) -> None:
    """German captions that are all the same find the first image's, one of three; a language alone finds none."""
    found = retrieval(oracle(), encoded(oracle(), squares), Context()).metrics
    assert found["cross_lingual_r1"] == found["languages"]["de"]["cross_lingual_r1"] == 1
    assert "cross_lingual_r1" not in found["languages"]["en"]
    only_english = oracle(text=lambda texts: torch.ones(len(texts), 3) if "ein" in texts[0] else oracle().text(texts))
    lost = retrieval(only_english, encoded(only_english, squares), Context()).metrics
    assert lost["cross_lingual_r1"] == pytest.approx(1 / 3) and lost["languages"]["en"]["text_to_image_r1"] == 1
    untranslated = [replace(one, captions=one.captions[:2]) for one in squares[1:]] + squares[:1]
    assert len(values_of(retrieval(oracle(), encoded(oracle(), untranslated), Context()).metrics)) == 1
    alone = retrieval(oracle(), encoded(oracle(), squares), Context(languages=("de",))).metrics
    assert not [name for name in alone if name.startswith("cross_lingual")]


def values_of(metrics: dict[str, Any]) -> list[float]:
    """By caption that was asked, whether it found its image's English ones first."""
    scores: list[float] = metrics["cross_lingual_r1_values"]["scores"]
    return scores


def write_folder(folder: Path, rows: list[tuple[str, dict[str, Any]]]) -> Source:
    """Rows of val, each with what it says of the picture that is one ink all over."""
    for ink, color in INKS.items():
        Image.new("RGB", (SIDE, SIDE), color).save(folder / f"{ink}.png")
    lines = [json.dumps(row | {"file_name": f"{ink}.png", "split": "val"}) for ink, row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return open_source(str(folder), split="val")


def test_rows_of_one_image_are_no_wrong_answers_to_each_other(tmp_path: Path) -> None:
    """Five rows a file, as CSVs of captions have them: a model that matches finds all; it was 0.2 of them."""
    rows = [(ink, {"caption": f"{ink} picture {number}"}) for number in range(5) for ink in INKS]
    judged = encode_examples(oracle(), write_folder(tmp_path, rows), 64)
    found = retrieval(oracle(), judged, Context()).metrics
    assert found["images"] == 3 and found["captions"] == 15
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == 1.0


def test_rows_with_labels_alone_are_classified(tmp_path: Path) -> None:
    judged = encode_examples(oracle(), write_folder(tmp_path, [(ink, {"label": ink}) for ink in INKS]), 64)
    found = zero_shot(oracle(), judged, Context(languages=("en",))).metrics
    assert found["images"] == found["classes"] == 3 and found["accuracy"] == 1.0


def test_languages_weigh_the_same_however_many_captions(squares: list[Example]) -> None:
    only_german = oracle(text=lambda texts: oracle().text(texts) if "ein" in texts[0] else torch.ones(len(texts), 3))
    figures = retrieval(only_german, encoded(only_german, squares), Context()).metrics
    assert figures["languages"]["de"]["text_to_image_r1"] == 1
    assert figures["languages"]["en"]["text_to_image_r1"] == pytest.approx(1 / 3)
    assert figures["text_to_image_r1"] == pytest.approx(2 / 3)  # not (3 + 6 / 3) / 9
    assert "languages" not in retrieval(oracle(), encoded(oracle(), squares), Context(languages=("de",))).metrics


def test_classes_are_told_by_their_names(squares: list[Example]) -> None:
    found = zero_shot(oracle(), encoded(oracle(), squares), Context(languages=("en",)))
    assert found.metrics["accuracy"] == 1 and found.metrics["classes"] == 3 and found.metrics["prompts"] == 81
    assert [sample.predictions[0] for sample in found.samples] == ["red", "green", "blue"]
    with pytest.raises(NotApplicable, match="label"):
        zero_shot(oracle(), encoded(oracle(), [replace(one, extras={}) for one in squares]), Context())


def test_likelihood_stands_beside_its_blind_baseline(small: Small, pipeline: TextPipeline) -> None:
    subject = of(small, pipeline, "locca")
    source = open_source("scenes:drawings=5,objects=1", split="val", pixels=SIDE)
    found = zero_shot(subject, encode_examples(subject, source, 24), Context())
    figures = found.metrics
    assert figures["images"] == 24 and figures["classes"] == 5 and "accuracy" not in figures
    # Always one name: a fresh decoder, and a blind one, can be right no oftener than that name is.
    assert figures["accuracy_likelihood_blind"] <= figures["most_frequent_class"]
    assert len(found.samples[0].predictions) == 5


def test_names_and_prompts_become_what_big_vision_makes_of_them() -> None:
    assert canonical("A  Photo_of the {}!", keep="{}") == "a photo of the {}"
    assert class_name({"en": "Tench, Tinca tinca"}, "en") == "tench"
    assert class_name({"en": "red apple"}, "de") == ""
    assert (
        len(templates("en")) == 81
        and templates("en")[-1] == "{}"
        and templates("en")[0] == "a bad photo of a {}"
        and templates("de") == ("{}",)
    )
    assert all(prompt.count("{}") == 1 for prompt in templates("en"))


def test_prompts_are_averaged_as_unit_vectors_and_made_one_again() -> None:
    generator = torch.Generator().manual_seed(0)
    table: dict[str, torch.Tensor] = {}

    def read(texts: Any) -> torch.Tensor:
        return torch.stack([table.setdefault(text, torch.randn(3, generator=generator) * len(text)) for text in texts])

    found = class_embeddings(oracle(text=read), ["red", "blue"], "en")
    mean = torch.stack([F.normalize(table[prompt.replace("{}", "red")], dim=0) for prompt in templates("en")]).mean(0)
    torch.testing.assert_close(found[0], mean / mean.norm())


def test_what_is_drawn_is_what_is_labelled() -> None:
    source = open_source("scenes:drawings=5,objects=2", split="val", pixels=SIDE)
    one = oracle()
    seen = encode_examples(one, source, 12)
    for example in seen.examples:
        names = [thing.names["en"] for thing in things(example)]
        assert len(names) == len(example.regions)
        assert (label(example) is not None) == (len(names) == 1)
        for thing, region in zip(things(example), example.regions, strict=True):
            ys, xs = thing.mask.nonzero(as_tuple=True)
            assert region.bbox[0] <= xs.min() and xs.max() < region.bbox[2] and ys.max() < region.bbox[3]


def test_masks_follow_the_image_into_the_frame() -> None:
    large = open_source("scenes:drawings=5,objects=2,pixels=64", split="val", pixels=SIDE)
    for example in encode_examples(oracle(), large, 4).examples:
        for thing, region in zip(things(example), example.regions, strict=True):
            assert thing.mask.shape == (SIDE, SIDE)
            ys, xs = thing.mask.nonzero(as_tuple=True)
            assert xs.min() >= region.bbox[0] - 1 and xs.max() <= region.bbox[2] and ys.min() >= region.bbox[1] - 1


def test_hostile_masks_are_passed_over(squares: list[Example]) -> None:
    for masks in ([1], [{"label": "x"}], [{"label": "x", "polygons": [["a"] * 6]}], [{"polygons": []}], "x", 3):
        one = replace(squares[0], extras={"masks": masks, "size": (4, 4)})
        assert not any(thing.mask.any() for thing in things(one)), masks


def test_patches_point_at_what_a_phrase_names(squares: list[Example]) -> None:
    found = open_vocabulary(oracle(), encoded(oracle(), squares), Context(languages=("en",)))
    assert found.metrics["pointing"] == 1 and found.metrics["miou"] == pytest.approx(1, abs=0.01)
    assert found.metrics["pointing_random"] == pytest.approx(8 * 16 / SIDE**2)
    assert found.metrics["pointing_centred"] == 1

    def shared(
        texts: Any,
    ) -> torch.Tensor:  # all texts say first of all what the ground shows, as after little training
        return F.normalize(oracle().encode_texts(texts) - 3 * torch.ones(3), dim=-1)

    drowned = oracle(text=shared)
    found = open_vocabulary(drowned, encoded(drowned, squares), Context(languages=("en",)))
    assert found.metrics["pointing"] == 0 and found.metrics["pointing_centred"] == 1
    inverted = oracle(to_text=lambda tokens: -tokens)
    assert open_vocabulary(inverted, encoded(inverted, squares), Context(languages=("en",))).metrics["pointing"] == 0
    with pytest.raises(NotApplicable, match="text tower"):
        open_vocabulary(oracle(text=None), encoded(oracle(), squares), Context())


class Many(Source):
    """Squares of all colours and places."""

    name, languages = "many", ("en", "de")

    def __init__(self, **extras: Any) -> None:
        self.extras = extras

    def __len__(self) -> int:
        return 36

    def example(self, index: int, language: str | None = None) -> Example:
        return square(list(INKS)[index % 3], 8 * (index // 3 % 4), self.extras)

    def texts(self) -> Any:
        return iter(())

    def describe(self) -> dict[str, Any]:
        return {}


def test_probes_read_what_is_in_the_features(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(1000, 4000, SIDE).astype(np.uint16)[:, None], (1, SIDE))
    ramp[:, :3] = 0  # unknown
    Image.fromarray(ramp).save(tmp_path / "depth.png")
    source = Many(depth=str(tmp_path / "depth.png"))
    subject = oracle()
    seen = encode_examples(subject, source, 12)
    figures = probes(subject, seen, Context(source)).metrics
    image, segmentation, depth = figures["image"], figures["segmentation"], figures["depth"]
    assert image["knn"] == image["linear"] == image["shots_5"] == 1 and image["chance"] == pytest.approx(1 / 3)
    assert image["shots_10"] == 1 and "shots_25" not in image  # there are twelve of each
    assert segmentation["miou"] > 0.7 > 0.3 > segmentation["miou_ground_everywhere"]  # logits are blurred at edges
    assert segmentation["knn_iou"] > 0.9
    assert depth["rmse_metres_mean_depth"] == pytest.approx(np.sqrt(9 / 12), rel=0.1)  # of a uniform ramp of 3 m
    assert depth["rmse_metres"] < depth["rmse_metres_mean_depth"] + 1e-6  # the squares say nothing of it
    assert set(probes(subject, seen, Context()).metrics) == {"token_variance"}, "all else needs a training split"


def test_patches_take_the_class_of_the_nearest_patches_of_training() -> None:
    """By hand: two images of four patches; what is unknown or padding (-1) neither votes nor counts."""
    a, b, c = torch.eye(3)
    known, classes = torch.stack([a, b, c])[None], torch.tensor([[0, 1, -1]])
    test = torch.stack([torch.stack([a, b, a, c]), torch.stack([a, b, c, c])])
    found = by_nearest_patches(known, classes, test, torch.tensor([[0, 1, 1, -1], [0, 0, -1, -1]]))
    assert found["knn_accuracy_values"]["scores"] == pytest.approx([2 / 3, 1 / 2])
    assert found["knn_iou_values"]["scores"] == pytest.approx([(1 / 2 + 1 / 2) / 2, 1 / 2]), "true classes alone"
    assert found["knn_iou"] == pytest.approx(0.5) and found["knn_accuracy"] == pytest.approx(7 / 12)


def test_the_variance_of_tokens_is_shared_out() -> None:
    """Tokens made of a place, an image and a rest, of variances 4, 1 and 9."""
    draw = torch.Generator().manual_seed(0)
    parts = [scale * torch.randn(shape, generator=draw) for scale, shape in ((2, (16, 32)), (1, (200, 1, 32)))]
    tokens = parts[0] + parts[1] + 3 * torch.randn(200, 16, 32, generator=draw)
    subject, seen = oracle(), encode_examples(oracle(), Many(), 12)
    found = token_variance(subject, replace(seen, tokens=tokens), Context()).metrics
    assert found["place"] + found["image"] + found["rest"] == pytest.approx(1)
    assert (found["place"], found["image"]) == (pytest.approx(4 / 14, abs=0.03), pytest.approx(1.5 / 14, abs=0.02))
    low, high = found["rest_ci95"]
    assert low < found["rest"] < high < low + 0.02
    with pytest.raises(NotApplicable, match="alike"):
        token_variance(subject, replace(seen, tokens=torch.ones(3, 4, 5)), Context())


def test_patches_take_the_most_frequent_class_and_the_mean_depth() -> None:
    classes = torch.zeros(8, 8, dtype=torch.int64)
    classes[:3, :4], classes[4:, 4:] = 2, -1
    assert most_frequent(classes, 2, 2).tolist() == [2, 0, 0, -1]
    assert most_frequent(classes, 2, 1).tolist() == [0, -1] and most_frequent(classes[:4], 1, 2).tolist() == [2, 0]
    depth = torch.full((8, 8), 2.0)
    depth[:4, :2], depth[4:, :4] = 4.0, torch.nan
    assert patches(depth, 2, 2).nanmean(-1).nan_to_num(nan=-1).tolist() == [3.0, 2.0, -1.0, 2.0]


def of(small: Small, pipeline: TextPipeline, name: str) -> Oracle:
    recipe = small(name)
    torch.manual_seed(0)
    model = Model.new(recipe.architecture, len(pipeline)).eval()
    return Oracle.of(model, pipeline, name=name, boxes=recipe.boxes, tasks=recipe.tasks)


def test_some_of_both_are_shown() -> None:
    assert hits_and_misses([True, False, True, False, True], each=2) == [0, 2, 1, 3]


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judged") / "run"
    run(root, held_out=4, eval_every=2)
    return root


def test_a_run_is_judged_by_command_and_twice_alike(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(trained), "--data", "scenes:drawings=8,objects=2", "--count", "16", "--train-count", "24"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    first, second = ((tmp_path / name / "evaluation.json").read_text() for name in "ab")
    assert first == second
    results = json.loads(first)
    assert set(results["tasks"]) >= {"retrieval", "zeroshot", "grounding", "probes", "openvocab"}
    assert {"image", "segmentation", "token_variance"} == set(results["tasks"]["probes"]) and results["examples"] == 16
    for name in ("image_to_text_r10", "accuracy_likelihood_blind", "miou_ground_everywhere", "pointing_random"):
        assert name.replace("_", " ") in said
    page = (tmp_path / "a" / "evaluation.html").read_text()
    assert "OpenMoji drawings" in page and "evaluation" in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)


def test_the_same_figures_are_taken_while_training(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    taken = [row for row in rows if any(name.startswith("eval/") for name in row)]
    assert [row["step"] for row in taken] == [1, 3]  # of six steps; the end has its own judgement
    assert 0 <= taken[0]["eval/retrieval/image_to_text_r1"] <= 1 and "eval/grounding/mean_iou" in taken[0]
    assert "retrieval: image to text r1" in (trained / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["EMPTY", "--data", "scenes"], "has a format that can't be read"),
        (["RUN", "--data", "scenes", "--tasks", "retrieval,magic"], "'magic' is unknown"),
        (["RUN", "--data", "scenes", "--split", "dusk"], "dusk"),
        (["RUN", "--data", "scenes", "--count", "0"], "at least 1"),
        (["timm:EMPTY", "--data", "scenes"], "can't be"),
        (["open_clip:nowhere:x.safetensors", "--data", "scenes"], "can't be loaded"),
        (["open_clip:ViT-B-32", "--data", "scenes"], "names no weights"),
    ],
)
def test_what_can_not_be_judged_is_said_in_a_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    places = {"RUN": str(trained), "EMPTY": str(tmp_path)}
    assert main(["eval", *(re.sub("RUN|EMPTY", lambda name: places[name[0]], word) for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_with_labels_masks_and_depth(tmp_path: Path) -> None:
    lines = []
    (tmp_path / "depth").mkdir()
    for place in range(12):
        color = list(INKS)[place % 3]
        picture = Image.new("RGB", (40, 40))
        ImageDraw.Draw(picture).rectangle((10, 10, 29, 29), fill=color)
        picture.save(tmp_path / f"{place}.png")
        Image.fromarray(np.full((40, 40), 1500 + 10 * place, np.uint16)).save(tmp_path / "depth" / f"{place}.png")
        masks = [{"label": color, "polygons": [[10, 10, 29, 10, 29, 29, 10, 29]]}]
        row = {"file_name": f"{place}.png", "label": color, "masks": masks, "depth": f"depth/{place}.png"}
        lines.append(json.dumps(row | {"captions": [f"a {color} box"], "split": "val" if place < 3 else "train"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    tasks = evaluate(oracle(), str(tmp_path), ["zeroshot", "probes", "openvocab"], quiet=True)["tasks"]
    assert tasks["zeroshot"]["accuracy"] == 1 and tasks["openvocab"]["miou"] > 0.9
    assert tasks["probes"]["image"]["knn"] == 1 and tasks["probes"]["segmentation"]["miou"] > 0.5
    assert tasks["probes"]["depth"]["rmse_metres"] < 0.2
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines).replace("depth/3.png", "../depth.png"))
    source = open_source(str(tmp_path), split="train")
    assert len(encode_examples(oracle(), source, 20).examples) == 8  # the row whose depth lies elsewhere is left out


def test_every_benchmark_says_what_it_measures() -> None:
    for benchmark in BENCHMARKS.values():
        assert (benchmark.__doc__ or "").strip()


def test_without_any_task_that_can_be_done_one_sentence_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="grounding: the model has no decoder"):
        evaluate(oracle(), "scenes:drawings=5", ["grounding"], count=4, quiet=True)


def test_an_images_iou_is_the_mean_over_the_classes_in_it() -> None:
    """6 / (8 + 7 - 6) and 1 / (2 + 3 - 1); the second class is predicted and not there."""
    shared, predicted, here = [6, 0, 1], [8, 4, 2], [7, 0, 3]
    assert image_iou(torch.tensor([shared, predicted, here])) == pytest.approx((6 / 9 + 1 / 4) / 2)
    assert image_iou(torch.zeros(3, 2)) == 0
