"""Tasks whose answer is text: captions, questions and answers, counting, reading (PaliGemma's prompts, after PaLI's).

Prompts: `caption {lang}`, `answer en {question}`, `question {lang} {answer}`, `ocr`; `count {thing}` is ours.
"""

from typing import Any

from opensiglip.data.fields.field import Visit
from opensiglip.data.scenes.languages import indefinite
from opensiglip.data.scenes.phrases import part_of_image, relation
from opensiglip.data.tasks.places import things
from opensiglip.data.tasks.task import Draw, Form, Task, TaskText, in_language, language_of, plain

SIDES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def _captions(visit: Visit) -> tuple[str, ...]:
    """All that a caption of this visit could have said."""
    return tuple(c.text for c in visit.example.captions if c.language == language_of(visit))


def _cap(visit: Visit, draw: Draw) -> TaskText | None:
    if visit.caption is None:
        return None
    return TaskText(("Cap:",), (visit.caption.text,), truth=_captions(visit))


def _caption(visit: Visit, draw: Draw) -> TaskText | None:
    if visit.caption is None:
        return None
    return TaskText((f"caption {visit.caption.language}",), (visit.caption.text,), truth=_captions(visit))


def questions(visit: Visit) -> list[tuple[str, str]]:
    """Questions in English with their answers: the source's own (column `qa`), else about what it names and where.

    Each has one right answer: a thing asked for by name occurs once, and one thing at most stands where it is asked.
    """
    if given := _strings(visit, "qa", "question", "answer"):
        return given
    named = [(region.names["en"], region.bbox) for region in visit.regions if "en" in region.names]
    names = [name for name, _ in named]
    asked = [(f"is there {indefinite(name)}?", "yes") for name in dict.fromkeys(names)]
    if absent := visit.example.extras.get("absent", {}).get("en"):
        asked.append((f"is there {indefinite(absent)}?", "no"))
    once = [(name, box) for name, box in named if names.count(name) == 1]
    for name, box in once:
        if place := part_of_image(box, visit.image.shape[-1]):
            asked.append((f"where is the {name}?", place))
        for side, words in SIDES.items():
            there = [other for other, its in named if its != box and relation(its, box) == side]
            if len(there) == 1:
                asked.append((f"what is {words} the {name}?", there[0]))
    return asked


def _strings(visit: Visit, column: str, *keys: str) -> list[tuple[Any, ...]]:
    """The entries of an optional column that have these strings; English or of no language."""
    rows = visit.example.extras.get(column)
    return [
        tuple(row[key].strip() for key in keys)
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict)
        and row.get("lang", "en") == "en"
        and all(isinstance(row.get(key), str) and row[key].strip() for key in keys)
    ]


def _answer(visit: Visit, draw: Draw) -> TaskText | None:
    asked = questions(visit)
    if not asked:
        return None
    question, answer = asked[int(draw() * len(asked))]
    return TaskText(("answer en", question), (answer,), truth=answer)


def _question(visit: Visit, draw: Draw) -> TaskText | None:
    asked = questions(visit)
    if not asked:
        return None
    question, answer = asked[int(draw() * len(asked))]
    right = tuple(dict.fromkeys(other for other, its in asked if its == answer))
    return TaskText(("question en", answer), (question,), truth=right)


def _count(visit: Visit, draw: Draw) -> TaskText | None:
    """How often a thing is seen; of scenes also of one that is not there."""
    counts = {name: len(boxes) for name, boxes in things(visit).items()}
    if absent := visit.example.extras.get("absent"):
        counts[in_language(absent, language_of(visit))] = 0
    if not counts:
        return None
    name = list(counts)[int(draw() * len(counts))]
    return TaskText(("count", name), (str(counts[name]),), truth=str(counts[name]))


def _ocr(visit: Visit, draw: Draw) -> TaskText | None:
    """What is written, in the source's order."""
    words = [text for (text,) in _strings(visit, "ocr", "text")]
    if not words:
        return None
    text = " ".join(words)
    return TaskText(("ocr",), (text,), truth=text)


def _number(text: str, form: Form) -> str:
    return text.split()[0] if text.split() else ""


TEXTS = (
    Task("cap", _cap, plain, "caption", " Cap:", cut=True, prefix=("Cap:",)),
    Task("caption", _caption, plain, "caption", " caption", cut=True, prefix=("caption LANGUAGE",)),
    Task("answer", _answer, plain, "exact", " answer", prefix=("answer en", "QUESTION")),
    Task("question", _question, plain, "caption", " question", prefix=("question en", "ANSWER")),
    Task("count", _count, _number, "exact", " count 0 1 2 3 4 5 6 7 8 9", prefix=("count", "NAME")),
    Task("ocr", _ocr, plain, "words", " ocr", prefix=("ocr",)),
)
