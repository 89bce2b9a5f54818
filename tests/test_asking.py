"""Any trained task is asked of a decoder and of PaLI alike, in any trained language; boxes are ordered by choice."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensiglip.apps.demo.page import Page
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.captions import box_ids
from opensiglip.data.tasks import TASKS, Form, Polygon, Task, plain
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference.answers import Answer
from opensiglip.inference.box_grammar import BoxGrammar, State
from opensiglip.inference.predictor import Predictor
from opensiglip.inference.text_generator import Prompt
from opensiglip.models.kv_cache import KVCache
from opensiglip.models.model import Model
from opensiglip.models.pali import PaliDecoder
from opensiglip.types import Features

BOXES = BoxFormat(top=60)
QUESTIONS = {
    "cap": "Cap:", "caption": "caption de", "answer": "answer en is there a fox?", "question": "question en yes",
    "count": "count fox", "ocr": "ocr", "aref": "ARef: a fox :", "gcap": "GCap: 15 15 45 45 :",
    "detect": "detect fox ; apple", "segment": "segment a fox",
}  # fmt: skip


def picture(seed: int, width: int = 48, height: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [picture(0), picture(1, 32, 32)]


@pytest.fixture(scope="module", params=["tasks", "pali"])
def asked(request: pytest.FixtureRequest, small: Any, pipeline: TextPipeline) -> Predictor:
    """A decoder, and PaLI's encoder-decoder, trained on every task, of random weights."""
    torch.manual_seed(0)
    recipe = small(request.param, tasks=",".join(TASKS))
    model = Model.new(recipe.architecture, len(pipeline)).eval()
    vocabulary = (model.decoder or model.pali).vocabulary  # type: ignore[union-attr]
    torch.nn.init.normal_(vocabulary.weight)
    vocabulary.bias.data[pipeline.policy.eos_id] = 9.0  # texts end before the room does
    return Predictor(
        Pretrained.of(model, pipeline, name="a run", boxes=BOXES, tasks=tuple(TASKS), languages=("de", "fr"))
    )


def greedily(predictor: Predictor, prefix: str, given: str = "") -> str:
    """The first picture's answer by full passes, the likeliest id again and again."""
    pipeline, features = predictor.pipeline, predictor._encode([predictor_pixels()])
    assert pipeline is not None
    asked, text = pipeline.ids(prefix), list(pipeline.ids(given) if given else ())
    start = len(text)
    if predictor.pali is None:
        text, start = [*asked, *text], len(asked) + start
    while len(text) < predictor._decoder.length:
        inputs = torch.tensor([[pipeline.policy.pad_id, *text]])
        zeros, places = torch.zeros_like(inputs), torch.arange(inputs.shape[1])[None]
        with torch.no_grad():
            if predictor.pali is None:
                assert predictor.decoder is not None
                hidden = predictor.decoder(inputs, places, zeros, zeros.bool(), features.tokens)
            else:
                hidden = predictor.pali(features.tokens, torch.tensor([asked]), inputs)
        text.append(int(predictor._decoder.vocabulary(hidden[0, -1]).argmax()))
        if text[-1] == pipeline.policy.eos_id:
            break
    return pipeline.text(text[start:])


def predictor_pixels() -> torch.Tensor:
    return torch.from_numpy(np.array(PICTURES[0])).permute(2, 0, 1)


def test_every_trained_task_is_answered_as_it_is_decoded(asked: Predictor) -> None:
    for name, question in QUESTIONS.items():
        if name in ("aref", "gcap"):
            continue
        answer = asked.ask(PICTURES, question)
        assert len(answer) == 2 and answer[0].text == greedily(asked, f" {question}")
        assert answer[1].value == TASKS[name].read(answer[1].text, Form(BOXES, 32, 32))
    x1, y1, x2, y2 = asked.ask(PICTURES[0], QUESTIONS["aref"]).value
    assert 0 <= x1 < x2 <= 48 and 0 <= y1 < y2 <= 24
    assert asked.locate(PICTURES[0], "a fox").box == (x1, y1, x2, y2)
    assert asked.describe(PICTURES[0], (12, 6, 36, 18)) == asked.ask(PICTURES[0], QUESTIONS["gcap"]).text


def test_pali_s_decoder_goes_on_from_what_is_given(asked: Predictor, pipeline: TextPipeline) -> None:
    said = asked.ask(PICTURES[0], "GCap: 15 15 45 45 :").text
    assert said == greedily(asked, " GCap:", " 15 15 45 45 :")
    features = asked._encode([predictor_pixels()])
    one, other = (Prompt(pipeline.ids(" ARef:"), pipeline.ids(f" {phrase} :")) for phrase in ("a fox", "apple"))
    written = asked.generate(features, [one, other], images=[0, 0])
    assert written == [asked.generate(features, [prompt])[0] for prompt in (one, other)] and written[0]


def test_a_score_is_the_likelihood_of_the_box(asked: Predictor, pipeline: TextPipeline) -> None:
    features = asked._encode([predictor_pixels()])
    found = asked.locate(PICTURES[0], "a fox", num_beams=1)
    prefix, given = pipeline.ids(" ARef:"), pipeline.ids(" a fox") + pipeline.ids(" :")
    prompt = Prompt(prefix, given)
    whole = asked.generate(features, [prompt], grammar=asked.grammar)[0]
    with torch.no_grad():
        if asked.pali is not None:
            inputs = torch.tensor([[pipeline.policy.pad_id, *given, *whole[:-1]]])
            hidden = asked.pali(features.tokens, torch.tensor([prefix]), inputs)[0, len(given) :]
            logits = asked.pali.vocabulary(hidden)
        else:
            assert asked.decoder is not None
            inputs = torch.tensor([[pipeline.policy.pad_id, *prefix, *given, *whole[:-1]]])
            zeros = torch.zeros_like(inputs)
            places = torch.arange(inputs.shape[1])[None]
            hidden = asked.decoder(inputs, places, zeros, zeros.bool(), features.tokens)
            logits = asked.decoder.vocabulary(hidden[0, len(prefix) + len(given) :])
    likely = logits.log_softmax(-1)[torch.arange(len(whole)), torch.tensor(whole)]
    assert found.score == pytest.approx(math.exp(likely.mean()), rel=1e-4)


def test_proposals_and_labels_come_from_either(asked: Predictor) -> None:
    found = asked.propose(PICTURES[0], count=2)
    assert 1 <= len(found) <= 2 and all(0 <= one.score <= 1 and one.phrase for one in found)
    shares = asked.classify(PICTURES, ["a fox", "an apple"])
    assert len(shares) == 2 and all(sum(row.values()) == pytest.approx(1) for row in shares)


def test_a_language_is_chosen_by_its_mark(asked: Predictor) -> None:
    for language in ("de", "fr"):
        assert asked.caption(PICTURES[0], language=language) == greedily(asked, f" caption {language}")
    assert asked.caption(PICTURES[0]) == asked.caption(PICTURES[0], language="de")  # English it never saw
    assert asked.caption(PICTURES[0], language="fr") != asked.caption(PICTURES[0], language="de")
    for call in (lambda: asked.caption(PICTURES, language="it"), lambda: asked.ask(PICTURES, "caption it")):
        with pytest.raises(UserError, match="^a run never saw 'it'; its captions are in de, fr.$"):
            call()


def test_the_corners_of_a_box_are_ordered_by_choice(asked: Predictor, pipeline: TextPipeline) -> None:
    torch.manual_seed(0)
    wild: dict[str, Any] = {"do_sample": True, "temperature": 9.0}
    for ordered in (True, False):
        said = asked.ask([PICTURES[0]] * 24, "ARef: a fox :", ordered=ordered, **wild)
        marks = [[int(mark) for mark in answer.text.split()] for answer in said]
        assert all(len(four) == 4 and max(four) <= 60 for four in marks)
        straight = [four[0] < four[2] and four[1] < four[3] for four in marks]
        assert all(straight) if ordered else not all(straight)
        assert [answer.value is not None for answer in said] == straight


def test_an_unordered_grammar_admits_every_four_numbers(pipeline: TextPipeline) -> None:
    grammar = BoxGrammar(pipeline, BOXES, ordered=False)
    strict = BoxGrammar(pipeline, BOXES)
    for text, is_box in (("45 45 15 15", False), ("60 60 60 60", False), ("15 15 45 45", True)):
        assert accepts(grammar, pipeline, text) and accepts(strict, pipeline, text) is is_box
    assert not accepts(grammar, pipeline, "15 15 45") and not accepts(grammar, pipeline, "15 15 45 61")


def accepts(grammar: BoxGrammar, pipeline: TextPipeline, text: str) -> bool:
    state = State()
    for token in box_ids(pipeline, text):
        if token not in grammar.places or not grammar.allowed([state])[0, grammar.places[token]]:
            return False
        state = grammar.after(state, token)
    return bool(grammar.allowed([state])[0, grammar.places[grammar.eos]])


def test_places_are_in_pixels_and_a_polygon_has_corners() -> None:
    form = Form(BOXES, 48, 24)
    boxes = TASKS["detect"].read("15 15 45 45 fox ; 0 0 60 60 apple", form)
    answer = Answer("", boxes)
    assert answer.boxes == [("fox", (12, 6, 36, 18)), ("apple", (0, 0, 48, 24))] and answer.outline == ()
    assert Answer("", boxes[0][1]).boxes == [("", (12, 6, 36, 18))]
    polygon = TASKS["segment"].read("0 0 0 60 60 60", form)
    answer = Answer("0 0 0 60 60 60", polygon)
    assert isinstance(polygon, Polygon) and answer.boxes == [] and answer.outline == ((0, 0), (48, 0), (48, 24))
    assert answer.as_json() == {"text": answer.text, "value": [[0, 0], [48, 0], [48, 24]]}
    assert Answer("yes", "yes").boxes == [] and Answer("?", None).as_json() == {"text": "?", "value": None}


def test_a_task_of_ones_own_is_read_by_its_own_function(small: Any, asked: Predictor) -> None:
    own = Task("loud", lambda visit, draw: None, lambda text, form: text.upper(), "exact", prefix=("how loud?",))
    said = asked.ask(PICTURES[0], "how loud?", task=own)
    assert said.value == said.text.upper()
    with pytest.raises(UserError, match='asks for no task of this model; it was trained on "how loud\\?"'):
        asked.ask(PICTURES[0], "how quiet?", task=own)


def test_out_of_memory_while_writing_is_said_in_a_sentence(asked: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(KVCache, "start", full)
    for call in (
        lambda: asked.caption(PICTURES),
        lambda: asked.ask(PICTURES, "ocr"),
        lambda: asked.propose(PICTURES),
    ):
        with pytest.raises(UserError, match="^the GPU ran out of memory; give fewer images at once"):
            call()


def test_a_file_that_a_run_names_is_not_opened(asked: Predictor) -> None:
    other = Predictor(replace(asked.pretrained, tasks=("caption", "nowhere.py:largest")))
    assert other.ask(PICTURES[0], "what is largest?") == asked.ask(
        PICTURES[0], "what is largest?", task=Task("largest", lambda visit, draw: None, plain, "exact")
    )


def test_tokens_that_are_padding_are_not_looked_at(asked: Predictor, pipeline: TextPipeline) -> None:
    features = asked._encode([predictor_pixels()])
    if asked.pali is not None:
        pytest.skip("PaLI reads squares, which have no padding")
    prompt = Prompt(pipeline.ids(" Cap:"))
    valid = torch.ones(1, features.tokens.shape[1] + 3, dtype=torch.bool)
    valid[:, -3:] = False
    padded = Features(None, torch.cat([features.tokens, torch.full_like(features.tokens[:, :3], 7.0)], 1), valid)
    assert asked.generate(padded, [prompt]) == asked.generate(features, [prompt])
    ids = pipeline.ids(" a fox")
    assert asked.score(padded, [(0, prompt, ids)]) == pytest.approx(asked.score(features, [(0, prompt, ids)]))


def test_pali_s_decoder_extends_as_it_reads_whole(asked: Predictor) -> None:
    pali = asked.pali
    if pali is None:
        pytest.skip("a decoder's own test is in test_decoding")
    torch.manual_seed(0)
    decoder, inputs = PaliDecoder(pali), torch.randint(5, 90, (2, 6))
    states, seen = pali.read(torch.randn(2, 16, 32), torch.randint(5, 90, (2, 4)))
    nothing = torch.zeros_like(inputs)
    with torch.no_grad():
        whole = decoder(inputs, nothing, nothing, nothing.bool(), states, seen)
        cache = decoder.start_cache(states, valid=seen)
        parts = [decoder.append(inputs[:, a:b], torch.full((2,), a), cache) for a, b in ((0, 3), (3, 4), (4, 6))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


def test_the_page_asks_too(asked: Predictor, tmp_path: Any) -> None:
    PICTURES[0].save(tmp_path / "a.png")
    page, image = Page(asked), str(tmp_path / "a.png")
    text, shown, value = page.ask(image, " ARef:  a fox :")
    assert text == asked.ask(PICTURES[0], "ARef: a fox :").text and shown.size == (640, 320)
    assert value == pytest.approx(asked.locate(PICTURES[0], "a fox").box, abs=0.006)
    assert '"caption LANGUAGE", "answer en QUESTION"' in page.questions() and page.languages() == ["de", "fr"]
    assert page.caption(image, 1, "fr") == asked.caption(PICTURES[0], language="fr")
    assert "locate, propose" in page.abilities() and "search by text" not in page.abilities()
