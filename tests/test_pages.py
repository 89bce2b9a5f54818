"""What the pages of runs and evaluations look like: readable colours, few bytes, filters without a script."""

import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from test_report import Page, metrics

from opensiglip.evaluation.benchmark import BenchmarkResult, Sample
from opensiglip.evaluation.run import Evaluation
from opensiglip.models.heads import HeadShape
from opensiglip.objectives.captioning import Caption
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.objectives.distillation import LocalToGlobal, MaskedPatches
from opensiglip.reports.curves import curve, switches
from opensiglip.reports.evaluation_page import in_words, write_evaluation
from opensiglip.reports.run_page import loss_charts, retrieval_table, signal_charts
from opensiglip.types import Reading

pytestmark = pytest.mark.usefixtures("every_curve")


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb.    (WCAG 2.2)"""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_can_be_read_in_light_and_dark(theme: int) -> None:
    """WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for the lines that carry meaning."""
    sheet = files("opensiglip.reports").joinpath("style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    assert len(blocks) == 2, "light, then dark"
    colours = dict(re.findall(r"--(\w+): (#\w+)", blocks[theme]))
    for ground in ("page", "card"):
        for ink in ("ink", "soft", "true"):  # --true is also that of links
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert contrast(colours["predicted"], colours[ground]) >= 3, ground


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """An evaluation of one benchmark with 12 samples, each an image of noise and three more beside it."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(4)]
    sample = Sample(images[0], True, "Which <image>?", ("this",), ("that",), images=tuple(images[1:]))
    figures = {"images": 12, "image_to_text_r1": 0.5, "image_to_text_r1_ci95": [0.4, 0.6], "text_to_image_r10": 0.75}
    result = BenchmarkResult(figures, [replace(sample, correct=number < 5) for number in range(12)])
    record = {"model": "m", "examples": 12, "data": "folder", "split": "val", "frame": "64 px", "seed": 0}
    record |= {"command": "opensiglip eval m", "tasks": {"retrieval": figures}, "values": {}, "left_out": {"x": "why"}}
    write_evaluation(tmp_path, Evaluation(record, {"retrieval": result}, {"retrieval": "What it is."}))
    return Page(tmp_path / "evaluation.html")


def test_an_evaluation_begins_with_its_figures_and_leads_to_its_parts(page: Page) -> None:
    headline = page.source.partition("<nav")[2].partition("</nav>")[0]
    assert "0.5000" in headline and "image → text, first hit (R@1)" in headline and "0.4000 – 0.6000" in headline
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {str(link["href"])[1:] for link in page.all("a")} <= ids
    assert "text → image, among the first 10 (R@10)" in page.text
    assert in_words("mean_iou") == "mean IoU" and in_words("chance_r1") == "first hit by chance"
    assert in_words("bleu4_greedy") == "BLEU-4 greedy" and in_words("openvocab") == "open vocabulary"


def test_hits_and_misses_are_filtered_without_a_script(page: Page) -> None:
    assert [one["class"] for one in page.all("input")] == ["pick all", "pick hits", "pick misses"]
    assert "all (12)" in page.text and "hits (5)" in page.text and "misses (7)" in page.text
    shown = [str(one["class"]).split()[-1] for one in page.all("article")]
    assert shown == ["hit"] * 5 + ["miss"] * 7
    assert ".pick.hits:checked ~ .samples .miss" in page.source and not page.all("script")


def test_pictures_wait_until_they_are_scrolled_to_and_are_small(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) == 12 * 4 and all(one["loading"] == "lazy" for one in pictures)
    assert len(page.source) / 12 < 100_000, "bytes a card, of noise, which compresses worst"


def test_a_switch_of_stages_is_drawn_in_every_curve_and_told() -> None:
    rows = [row | ({"loss/masked_patches": 1.0} if row["step"] >= 12 else {}) for row in metrics("sigmoid", "caption")]
    assert switches(rows) == {12: ["masked patches"]} and switches(rows[:12]) == {} and switches([]) == {}
    for name in ("loss/sigmoid", "loss/masked_patches", "lr"):
        assert curve(rows, name).count("stroke-dasharray") == 1, name
        assert "stroke-dasharray" not in curve(rows[:12], name)
    assert curve(rows, "lr", least=2e-3).count("stroke-dasharray") == 2


def test_losses_say_how_they_are_read_and_health_has_its_thresholds() -> None:
    heads = [one(32, HeadShape(8, 4, 16), weight=1.0, start=0.5) for one in (LocalToGlobal, MaskedPatches)]
    readings: dict[str, Reading] = {}
    for objective in (Sigmoid(), Caption(), *heads):
        readings |= objective.readings()
    rows = [
        row | {"local_to_global/teacher_information": 0.5, "loss/local_to_global": 2.0} for row in metrics("sigmoid")
    ]
    losses = {chart.name: chart.reading for chart in loss_charts(rows, {}, readings)}
    assert "not divergence" in losses["local to global"] and "batch size" in losses["sigmoid"]
    (health,) = signal_charts(rows, readings)
    assert "Below 20%" in health.reading and health.svg.count("stroke-dasharray") == 1
    assert readings["masked_patches/teacher_information"].least == 0.1


def test_a_report_has_the_recall_at_every_depth_beside_chance() -> None:
    measures = {"images": 20, "captions": 20, "chance_r1": 0.05}
    for way in ("image_to_text", "text_to_image"):
        for depth, value in ((1, 0.2), (5, 0.6), (10, 0.8)):
            measures |= {f"{way}_r{depth}": value, f"{way}_r{depth}_ci95": [value - 0.1, value + 0.1]}
    rows = retrieval_table(measures).rows
    assert [row[0].value for row in rows.values()] == ["20.0 %", "60.0 %", "80.0 %"] * 2
    assert [row[1].value for row in rows.values()] == ["5.0 %", "25.0 %", "50.0 %"] * 2
    assert next(iter(rows)) == "image → caption, first hit (R@1)"
