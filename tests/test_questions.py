"""A question that is typed is the question that training asked: the same ids, whatever the task and the box format."""

from itertools import islice

import numpy as np
import pytest

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.captions import compose, part_ids, task_words
from opensiglip.data.fields.field import Visit
from opensiglip.data.scenes.source import open_scenes
from opensiglip.data.tasks import TASKS, Form, Task, parse_question, plain, spelled
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError

SIDE = 64
FORMATS = (BoxFormat(), BoxFormat("x1 y1 x2 y2", 1000, ", "), BoxFormat.parse("loc"))


@pytest.fixture(scope="module")
def seen() -> list[Visit]:
    source = open_scenes("scenes:drawings=40,objects=4,words=2", split="val", pixels=SIDE)
    examples = [source.example(index, "en") for index in range(30)]
    return [Visit(e, e.image, e.regions, e.captions[0]) for e in examples]


@pytest.fixture(scope="module")
def texts() -> TextPipeline:
    source = open_scenes("scenes:drawings=40,objects=4", pixels=SIDE)
    words = task_words(tuple(TASKS), BoxFormat(top=500))
    pipeline = TextPipeline.train(islice(source.texts(), 600), size=1600, length=64, words=words)
    return pipeline.with_tokens(FORMATS[2].tokens())


@pytest.mark.parametrize("boxes", FORMATS, ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_what_is_typed_is_what_was_trained(name: str, boxes: BoxFormat, seen: list[Visit], texts: TextPipeline) -> None:
    task, form, asked_of = TASKS[name], Form(boxes, SIDE, SIDE), 0
    for place, visit in enumerate(seen):
        asked = task.ask(visit, np.random.default_rng(place).random)
        if asked is None:
            continue
        asked_of += 1
        typed = " ".join(form.write(part) for part in (*asked.prefix, *asked.target[: asked.given]))
        shouted = typed if boxes.loc else typed.upper()
        for words in (typed, f"  {shouted.replace(' ', '  ')} "):
            question = parse_question(words, list(TASKS.values()), Form(boxes, 1, 1))
            assert question.task is task and question.is_whole
            trained = compose(asked, visit, boxes, texts)
            unit = Form(boxes, 1, 1)
            assert part_ids(question.prefix, unit, texts) == trained.prefix
            given = part_ids(question.given, unit, texts)
            assert given == trained.target[: len(given)] and bool(given) == bool(asked.given)
    assert asked_of > 10


def test_what_is_given_of_the_answer_may_be_left_out() -> None:
    form = Form(FORMATS[0], 1, 1)
    question = parse_question("ARef:", [TASKS["aref"]], form)
    assert question.prefix == ("ARef:",) and question.given == () and not question.is_whole
    assert parse_question("ocr", [TASKS["ocr"]], form).is_whole


def test_names_are_asked_one_by_one_and_a_colon_needs_no_space() -> None:
    form = Form(FORMATS[0], 1, 1)
    assert parse_question("detect fox;owl ; bee", [TASKS["detect"]], form).prefix == (
        "detect", "fox", ";", "owl", ";", "bee",
    )  # fmt: skip
    assert parse_question("ARef: a fox:", [TASKS["aref"]], form).given == ("a fox", ":")


def test_what_is_no_question_is_answered_with_those_that_are() -> None:
    tasks, form = [TASKS["caption"], TASKS["gcap"]], Form(FORMATS[0], 1, 1)
    for words in ("detect fox", "captionen", "", "answer en what?"):
        with pytest.raises(UserError, match='trained on "caption LANGUAGE", "GCap: BOX :"'):
            parse_question(words, tasks, form)
    with pytest.raises(UserError, match="'1 2 3' is not a box in this model's format: y1 x1 y2 x2:500"):
        parse_question("GCap: 1 2 3 :", tasks, form)


def test_a_task_of_ones_own_is_asked_as_it_is_spelled_else_by_any_text() -> None:
    form = Form(FORMATS[0], 1, 1)
    spelt = Task("largest", lambda visit, draw: None, plain, "exact", prefix=("what is largest?",))
    free = Task("free", lambda visit, draw: None, plain, "exact")
    assert spelled(spelt) == "what is largest?"
    assert parse_question("What is largest?", [spelt, free], form).task is spelt
    assert parse_question("why?", [spelt, free], form).prefix == ("why?",)
