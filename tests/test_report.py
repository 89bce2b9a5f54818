"""RUN/report.html: whole in itself, and true to what the model says."""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Small
from oracle import Oracle
from PIL import Image
from prefixes import caption_prefix

from opensiglip.data.example import Caption, Example, Source
from opensiglip.data.fields.captions import Captions, Ids
from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.evaluation.encode import encode_examples
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.models.model import Model
from opensiglip.recipes import Recipe
from opensiglip.reports.curves import POINTS, curve, running_mean
from opensiglip.reports.drawing import PREDICTED, SIDE, TARGET, as_uri
from opensiglip.reports.held_out_samples import COUNT, answered, retrieved
from opensiglip.reports.patch_colours import COUNT as MAPPED
from opensiglip.reports.patch_colours import pca_colours
from opensiglip.reports.run_page import signal_charts, write_report

pytestmark = pytest.mark.usefixtures("every_curve")
HOSTILE = "<script>alert(1)</script> & \"quoted\" 'single' \ud800"
Row = dict[str, Any]


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self) -> list[dict[str, str | None]]:
        """The images with the model's answers, which have a width; maps of patch features have none."""
        return [image for image in self.all("img") if image.get("width")]


class Hostile(Source):
    """A source whose captions and phrases are markup."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.languages, self.skipped = source, HOSTILE, source.languages, source.skipped

    def __len__(self) -> int:
        return len(self.source)

    def example(self, index: int, language: str | None = None) -> Example:
        example = self.source.example(index)
        regions = tuple(replace(region, phrases={"en": "<i>it</i>"}) for region in example.regions)
        return replace(example, captions=(Caption(HOSTILE), Caption("<b>zwei</b>", '"de"')), regions=regions)

    def texts(self) -> Any:
        return self.source.texts()

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def write(tmp_path: Path, small: Small, pipeline: TextPipeline, scenes: Source) -> Callable[..., Page]:
    def page(name: str = "siglip2", *, rows: list[Row] | None = None, **changes: Any) -> Page:
        recipe = small(name)
        values = {"held_out": scenes} | changes
        path = tmp_path / "report.html"
        some = metrics("sigmoid", "caption") if rows is None else rows
        about = summary(some, judged=values["held_out"] is not None) | values.pop("summary", {})
        model = new(recipe, pipeline)
        told = (subject(recipe, model, pipeline), recipe.architecture, values["held_out"])
        write_report(path, about, some, *told, values.get("stages", {}))
        return Page(path)

    return page


def new(recipe: Recipe, pipeline: TextPipeline) -> Model:
    torch.manual_seed(0)
    return Model.new(recipe.architecture, len(pipeline)).eval()


def subject(recipe: Recipe, model: Model, pipeline: TextPipeline) -> Oracle:
    return Oracle.of(model, pipeline, name="it", boxes=recipe.boxes, tasks=recipe.tasks)


def metrics(*names: str, count: int = 30) -> list[Row]:
    rows = []
    for step in range(count):
        losses: Row = {f"loss/{name}": 5 / (1 + step) for name in names} | {"loss": 7 / (1 + step)}
        rows.append({"step": step} | losses | {"lr": 1e-3, "grad_norm": 1.5, "images_per_second": 40.0 + step})
    return rows


def summary(rows: list[Row], *, judged: bool = True) -> Row:
    names = [name for name in rows[-1] if name.startswith("loss")] if rows else []
    about: Row = {
        "recipe": "/somewhere/runs.py:my_siglip2",
        "command": "opensiglip train siglip2 --data '<scenes>'",
        "seed": 0,
        "versions": {"torch": "2.11"},
        "precision": "no",
        "parameters": {"vision": 1234567, "total": 2345678},
        "steps": 30,
        "images_seen": 480,
        "training_seconds": 90.0,
        "images_per_second": 5.3,
        "skipped_steps": 2,
        "skipped_examples": {"truncated <image>": 3},
        "losses": {name: {"first": 5.0, "last": 0.5} for name in names},
    }
    if judged:
        held: Row = {"source": HOSTILE[:8], "split": "val", "examples": 24, "grounding": {"phrases": 40, "images": 20}}
        for suffix, share in (("", 0.9), ("_constant_box", 0.2), ("_shuffled_images", 0.1)):
            hits = [float(place < 40 * share) for place in range(40)]
            held["grounding"] |= mean_with_interval(f"accuracy{suffix}", hits, range(40))
            held["grounding"] |= mean_with_interval(f"mean_iou{suffix}", [0.75 * hit for hit in hits], range(40))
        held["retrieval"] = {"images": 24, "captions": 24, "chance_r1": 1 / 24}
        held["retrieval"] |= mean_with_interval("image_to_text_r1", [True] + [False] * 23, range(24))
        held["retrieval"] |= mean_with_interval("text_to_image_r1", [True] * 12 + [False] * 12, range(24))
        about["held_out"] = held
    return about


def test_the_page_needs_nothing_but_itself(write: Callable[..., Page]) -> None:
    page = write()
    for tag, attributes in page.tags:
        for link in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            value = attributes.get(link) or ""
            assert value.startswith(("data:image/", "#")) or not value, (tag, link, value[:50])
    assert page.source.count("url(") == page.source.count("url(#") and "@import" not in page.source
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    numbered = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(numbered) == len(set(numbered)) and numbered, "two curves share a mark"


def test_every_term_has_a_curve_and_every_figure_its_words(write: Callable[..., Page]) -> None:
    page = write()
    labels = [attributes["aria-label"] for attributes in page.all("div") if attributes.get("role") == "img"]
    assert [str(label).partition(" over")[0] for label in labels] == [
        "sigmoid",
        "caption",
        "weighted sum",
        "learning rate",
        "gradient norm, before clipping",
        "images per second",
    ]
    assert len(page.all("svg")) == len(labels)
    assert len(page.pictures()) == COUNT
    for image in page.pictures():
        assert image["alt"] and "box" in image["alt"]
        decoded = Image.open(io.BytesIO(base64.b64decode(str(image["src"]).partition(",")[2])))
        assert decoded.size == (SIDE, SIDE)


def test_the_figures_stand_beside_their_blind_baselines(write: Callable[..., Page]) -> None:
    page = write()
    for words in ("90.0 %", "20.0 %", "10.0 %", "0.675", "4.2 %", "the best constant box", "chance"):
        assert words in page.text, words
    assert "its interval lies above both" in page.text  # 90 % against 20 and 10
    assert "does not show that it has learned" not in page.text
    assert "do not both lie above chance" in page.text  # 1 of 24 is chance
    for words in ("my_siglip2", "1,234,567", "3 × truncated <image>", "--data '<scenes>'", "2 steps whose loss"):
        assert words in page.text, words
    assert "/somewhere" not in page.text


def test_scenes_are_called_drawings_and_other_data_is_not(write: Callable[..., Page], scenes: Source) -> None:
    assert "OpenMoji drawings (CC BY-SA 4.0) in synthetic layouts, not photographs" in write().text
    assert "OpenMoji" not in write("cappa", held_out=Hostile(scenes)).text


def test_what_others_wrote_is_shown_not_run(write: Callable[..., Page], scenes: Source) -> None:
    page = write("cappa", held_out=Hostile(scenes))
    assert not page.all("script") and not page.all("i")
    assert page.text.count("<script>alert(1)</script> & \"quoted\" 'single' ?") == COUNT
    assert page.text.count("<b>zwei</b>") == COUNT and 'lang="&#34;de&#34;"' in page.source


@pytest.mark.parametrize(("name", "answers"), [("siglip2", 3), ("locca", 3), ("cappa", 1), ("siglip", 1)])
def test_only_what_the_model_can_do_is_shown(write: Callable[..., Page], name: str, answers: int) -> None:
    page = write(name)
    assert len(page.pictures()) == COUNT
    assert [attributes.get("class") for attributes in page.all("dd")].count("predicted") == answers * COUNT
    assert page.text.count("IoU 0.") == (COUNT if answers == 3 else 0)
    assert page.text.count("What is in the true box") == (COUNT if answers == 3 else 0)
    assert len(page.all("ol")) == (COUNT if name == "siglip" else 0)
    assert len(page.all("li")) == (3 * COUNT if name == "siglip" else 0) + 2  # two reasons for what was left out


def test_a_run_without_held_out_examples_or_rows_or_finite_losses_has_a_page(write: Callable[..., Page]) -> None:
    page = write(held_out=None)
    assert "Nothing was held out" in page.text and not page.all("img") and len(page.all("svg")) == 6
    page = write(held_out=None, rows=[])
    assert "No step was logged" in page.text and not page.all("svg")
    skipped: Row = {"step": 0, "loss/caption": None, "loss": None, "lr": 1e-3, "grad_norm": None}
    page = write(held_out=None, rows=[skipped], summary={"losses": {"loss/caption": {"first": None, "last": None}}})
    assert page.text.count("No step has this value") == 3 and len(page.all("svg")) == 1
    page = write(held_out=None, summary={"skipped_steps": 0, "skipped_examples": {}})
    assert "No example and no step was skipped" in page.text


def test_a_curve_leaves_out_what_is_none_and_stays_small() -> None:
    rows = metrics("caption", count=10)
    rows[3]["loss/caption"] = None
    marks = curve(rows, "loss/caption").count("<use")
    assert marks == 9
    assert curve(metrics("caption", count=5000), "loss").count("<use") <= POINTS
    assert curve(rows, "loss/absent") == ""
    late = [row | ({"loss/masked": 1.0} if row["step"] >= 5 else {}) for row in rows]
    assert curve(late, "loss/masked").count("<use") == 5


def test_a_curve_takes_the_colours_of_the_page() -> None:
    drawn = curve(metrics("caption"), "loss")
    assert "currentColor" in drawn and "var(--predicted)" in drawn and "#fff" not in drawn
    assert drawn == curve(metrics("caption"), "loss")


def test_the_running_mean_starts_at_the_first_value_and_follows_a_line() -> None:
    steps = np.array([0.0, 1, 2, 3, 10, 20, 30])
    assert running_mean(steps, 2 * steps, 0) == pytest.approx(2 * steps)
    smooth = running_mean(np.arange(50.0), 2 * np.arange(50.0), 5)
    assert smooth[:45] == pytest.approx(2 * np.arange(45.0))
    assert smooth[49] == pytest.approx(2 * np.mean(range(44, 50)))


def test_a_box_is_drawn_where_it_is() -> None:
    source = as_uri(torch.zeros(3, 32, 32, dtype=torch.uint8), [((8, 8, 24, 24), TARGET), ((0, 0, 16, 16), PREDICTED)])
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))).astype(int)
    scale = SIDE / 32
    inner = round(20 * scale)
    blue, orange, black = (
        picture[inner, round(24 * scale) - 1],
        picture[round(4 * scale), round(16 * scale) - 1],
        picture[inner, inner],
    )
    assert blue[2] > 100 > blue[0]
    assert orange[0] > 150 > orange[2]
    assert black.max() < 10


def test_a_model_that_answers_as_it_was_trained_is_shown_right(
    monkeypatch: pytest.MonkeyPatch, small: Small, pipeline: TextPipeline, scenes: Source
) -> None:
    recipe = small("locca")
    model = new(recipe, pipeline)
    seen = encode_examples(subject(recipe, model, pipeline), scenes, 6)
    field = Captions(recipe.tasks, boxes=recipe.boxes)
    rows: list[list[Ids]] = []
    for example in seen.examples:  # rows of training about the first region
        visit = Visit(example, example.image, example.regions[:1], example.captions[0])
        rows.append([row.prefix + row.target for row in field.draw(visit, np.random.default_rng(0), pipeline)])

    def oracle(
        _: Any,
        memory: torch.Tensor,
        prefixes: Sequence[Ids],
        *__: Any,
        owners: Sequence[int],
        each: int | None = None,
        **___: Any,
    ) -> list[Ids]:
        answers = []
        for tokens, prefix in zip(memory[list(owners)], prefixes, strict=True):
            place = next(i for i, known in enumerate(seen.tokens) if torch.equal(known, tokens))
            whole = next(row for row in rows[place] if row[: len(prefix)] == prefix)
            answers += [whole[len(prefix) : -1]] * (each or 1)
        return answers

    monkeypatch.setattr("opensiglip.inference.text_generator.generate", oracle)
    for picture, example in zip(answered(subject(recipe, model, pipeline), seen), seen.examples, strict=True):
        assert picture.caption == example.captions[0].text.lower()
        assert picture.box_phrase == picture.phrase.lower()
        assert picture.iou is not None and picture.iou > 0.9


def test_the_nearest_captions_are_retrieved_and_the_right_ones_marked(
    monkeypatch: pytest.MonkeyPatch, small: Small, pipeline: TextPipeline, scenes: Source
) -> None:
    recipe = small("siglip")
    one = subject(recipe, new(recipe, pipeline), pipeline)
    seen = replace(encode_examples(one, scenes, 20), pooled=torch.eye(20))
    told = [example.captions[0].text for example in seen.examples]

    def oracle(_: Oracle, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([torch.eye(20)[told.index(text)] for text in texts])

    monkeypatch.setattr(Oracle, "encode_texts", oracle)
    for place, picture in enumerate(retrieved(one, seen)):
        if told.index(told[place]) == place:  # a caption told twice has the first one's embedding here
            assert picture.retrieved[0] == (told[place], True)
        assert all(right == (text == told[place]) for text, right in picture.retrieved)


def test_embeddings_are_of_unit_length(small: Small, pipeline: TextPipeline) -> None:
    model = new(small("siglip"), pipeline)
    with torch.no_grad():
        found = subject(small("siglip"), model, pipeline).encode_texts(["a red apple", "two dogs"])
    assert found.norm(dim=-1).tolist() == pytest.approx([1, 1])
    assert not math.isclose(float(found[0] @ found[1]), 1, abs_tol=1e-6)


def test_a_caption_is_asked_for_as_it_was_trained(small: Small, pipeline: TextPipeline, visits: list[Visit]) -> None:
    for name in ("cap", "cappa", "locca", "siglip2"):
        recipe = small(name)
        field = next(field for field in recipe.fields if isinstance(field, Captions))
        drawn = field.draw(visits[0], np.random.default_rng(0), pipeline)[0]
        assert drawn.prefix == caption_prefix(pipeline, recipe.tasks), name


def test_patches_stand_in_their_colours_before_and_after(
    write: Callable[..., Page], small: Small, pipeline: TextPipeline
) -> None:
    once = [image["alt"] for image in write().all("img") if "patch features" in str(image["alt"])]
    assert len(once) == MAPPED
    before = {"after 24 steps": new(small("siglip2"), pipeline)}
    both = [str(image["alt"]) for image in write(stages=before).all("img") if "patch features" in str(image["alt"])]
    assert len(both) == 2 * MAPPED
    assert [alt.rpartition(", ")[2] for alt in both[:2]] == ["after 24 steps", "after 30 steps"]


def test_colours_are_the_principal_components_whatever_the_basis() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.arange(16.0).view(4, 4)
    strong, weak = ramp.flatten(), (ramp.T.flatten() % 5) ** 2 / 10
    tokens = torch.stack([strong, weak, 0.01 * torch.randn(16, generator=generator), torch.zeros(16)], -1).view(4, 4, 4)
    (colours,) = pca_colours([tokens])
    assert colours.shape == (4, 4, 3) and colours.min() == 0 and colours.max() == 1
    red = colours[..., 0].flatten()
    assert abs(float(torch.corrcoef(torch.stack([red, strong]))[0, 1])) > 0.99  # the largest variance first
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    turned = pca_colours([(tokens @ turn + 3)[:3], (tokens @ turn + 3)[3:]])  # as images of unlike shapes
    torch.testing.assert_close(torch.cat(turned), colours, rtol=0, atol=1e-4)
    assert all(torch.isfinite(one).all() for one in pca_colours(torch.ones(2, 3, 3, 8)))  # tells nothing apart


def test_signs_of_health_have_curves_of_their_own() -> None:
    rows = [row | {"logit_scale": 10.0 + row["step"], "silc/kl": 0.5} for row in metrics("sigmoid")]
    charts = signal_charts(rows)
    assert [chart.name for chart in charts] == ["logit scale", "silc: kl"]
    assert all("<svg" in chart.svg for chart in charts)
