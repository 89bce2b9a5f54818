"""A caption that another model chooses: by likelihood and fit, worked out here one text at a time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_use import BOXES, PICTURES, model_of
from test_use import captioner as captioner
from test_use import encoder as encoder
from test_use import predictor as predictor

from opensiglip.apps.cli import main
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference import rerank
from opensiglip.inference.generate import Decoding
from opensiglip.inference.images import load_images
from opensiglip.inference.predictor import Predictor
from opensiglip.inference.text_generator import TextGenerator

TEXTS = ["a fox", "a red apple and a fox", "two apples", "a ghost", "a door at the top", "a pie", "nothing", "an apple"]


@pytest.fixture(autouse=True)
def beam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image has these texts: those of random weights differ by rounding alone."""

    def beams(
        _: Predictor, features: Any, prompts: Sequence[Any], width: int, *, images: Any = None
    ) -> list[list[str]]:
        assert width == 8 and len(images) == len(prompts)
        return [TEXTS] * len(prompts)

    monkeypatch.setattr(TextGenerator, "beams", beams)


def by_hand(writer: Predictor, judge: Predictor, image: Image.Image, weight: float) -> str:
    """argmax log p(y | x) / |y| + weight cos(x, y)."""
    features, prompt = writer._encode(load_images([image])), writer.caption_prompt()
    found = []
    for text in TEXTS:
        ids = [*writer._pipeline.ids(f" {text}"), writer._pipeline.policy.eos_id]
        likelihood = writer.score(features, [(0, prompt, tuple(ids))])[0] / len(ids)
        found.append((likelihood + weight * float(judge.embed_images(image) @ judge.embed_texts(text).T), text))
    return max(found)[1]


@pytest.mark.parametrize("weight", [0.0, 2.0, 1000.0])
def test_the_caption_is_the_one_of_the_highest_sum(
    captioner: Predictor, encoder: Predictor, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerank, "WEIGHT", weight)
    expected = [by_hand(captioner, encoder, image, weight) for image in PICTURES]
    assert captioner.caption(PICTURES, rerank=encoder) == expected
    assert captioner.caption(PICTURES[1], rerank=encoder) == expected[1]


def test_cosine_and_likelihood_choose_differently(captioner: Predictor, encoder: Predictor) -> None:
    """So that a test of the sum would see one of the two left out."""
    chosen = [[by_hand(captioner, encoder, image, weight) for image in PICTURES] for weight in (0.0, 1000.0)]
    assert chosen[0] != chosen[1]


def test_a_model_with_both_chooses_among_its_own(predictor: Predictor) -> None:
    assert predictor.caption(PICTURES[0], rerank=predictor) == by_hand(predictor, predictor, PICTURES[0], rerank.WEIGHT)


def test_prompts_about_chosen_images_are_about_those(captioner: Predictor, encoder: Predictor) -> None:
    features, prompt = captioner._encode(load_images(PICTURES)), captioner.caption_prompt()
    seen = encoder.embed_images([PICTURES[2], PICTURES[0]])
    found = rerank.rerank(captioner, features, [prompt] * 2, encoder, seen, images=[2, 0])
    assert found == [by_hand(captioner, encoder, PICTURES[place], rerank.WEIGHT) for place in (2, 0)]


def test_the_first_of_the_beams_is_the_beams_answer(captioner: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    features = captioner._encode(load_images(PICTURES))
    found = captioner.beams(features, [captioner.caption_prompt()] * 2, 8, images=[1, 2])
    assert [len(some) for some in found] == [8, 8]
    alone = [captioner.generate(features, [captioner.caption_prompt()], Decoding(num_beams=8), images=[1])]
    assert found[0][0] == captioner._pipeline.text(alone[0][0])


def test_what_can_not_choose_is_said(captioner: Predictor, encoder: Predictor) -> None:
    with pytest.raises(UserError, match="cap has no text tower to choose among captions by"):
        captioner.caption(PICTURES[0], rerank=captioner)
    with pytest.raises(UserError, match="leave out num_beams"):
        captioner.caption(PICTURES[0], rerank=encoder, num_beams=2)


def test_the_commands_take_a_second_model(
    small: Any, pipeline: TextPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cap = {"tasks": ["cap"], "boxes": str(BOXES), "languages": ["en"]}
    for name, about in {"cap": cap, "siglip": {}}.items():
        folder = tmp_path / name
        folder.mkdir()
        model_of(small, pipeline, name).save_pretrained(folder, {"text": pipeline.save_pretrained(folder)} | about)
    PICTURES[0].save(tmp_path / "0.png")
    words = ["predict", str(tmp_path / "cap"), str(tmp_path / "0.png"), "--rerank", str(tmp_path / "siglip"), "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)["caption"]
    writer, judge = (Predictor(Pretrained.open(tmp_path / name)) for name in ("cap", "siglip"))
    assert said == writer.caption(PICTURES[0], rerank=judge)
    words = ["eval", str(tmp_path / "cap"), "--data", "scenes:objects=1", "--tasks", "captioning", "--count", "6"]
    words += ["--out", str(tmp_path / "judged"), "--rerank"]
    assert main([*words, str(tmp_path / "siglip")]) == 0
    record = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    found = record["tasks"]["captioning"]
    assert {"cider_reranked", "cider_reranked_ci95", "bleu4_reranked"} <= set(found)
    assert f"--rerank {tmp_path / 'siglip'}" in record["command"]
    assert main([*words, str(tmp_path / "cap")]) == 2
    assert "no text tower to choose" in capsys.readouterr().err
    words[words.index("captioning")] = "retrieval"
    assert main([*words, str(tmp_path / "siglip")]) == 2
    assert "--rerank chooses captions, and no task writes any" in capsys.readouterr().err
