"""What is said of a scene is true of its boxes, and every language says it."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opensiglip.data.example import Box
from opensiglip.data.scenes.drawings import LANGUAGES, drawings
from opensiglip.data.scenes.languages import GRAMMARS, PLACES, indefinite, two
from opensiglip.data.scenes.phrases import Clause, Placed, Plan, plan, render_caption, render_phrase

PIXELS = 64
TRUE = {  # written without the code under test
    "left": lambda box, other: box[2] <= other[0],
    "right": lambda box, other: box[0] >= other[2],
    "above": lambda box, other: box[3] <= other[1],
    "below": lambda box, other: box[1] >= other[3],
}


def placed(english: str, box: Box) -> Placed:
    drawing = next(one for side in drawings() for one in side if one.names["en"] == english)
    return Placed(drawing.code, drawing.names, box)


@st.composite
def scenes(draw: st.DrawFn) -> list[Placed]:
    """One to five boxes, some touching or overlapping; each drawing at most twice."""
    names = draw(st.lists(st.sampled_from(["fox", "cat", "bus"] * 2), min_size=1, max_size=5))
    side = st.integers(4, 30)
    found = []
    for name, count in Counter(names).items():
        for _ in range(min(count, 2)):
            width, height = draw(side), draw(side)
            x, y = draw(st.integers(0, PIXELS - width)), draw(st.integers(0, PIXELS - height))
            found.append(placed(name, (x, y, x + width, y + height)))
    return draw(st.permutations(found))


def stands_there(place: str, box: Box) -> bool:
    across, down = (box[0] + box[2]) / 2 / PIXELS, (box[1] + box[3]) / 2 / PIXELS
    holds = {"left": across < 0.4, "right": across > 0.6, "top": down < 0.4, "bottom": down > 0.6}
    return all(holds[word] == (word in place.split(" ")) for word in holds)


@settings(max_examples=300, deadline=None)
@given(scenes(), st.randoms(use_true_random=False))
def test_every_clause_is_true_of_the_boxes_and_fits_as_many_as_it_says(scene, random):
    said = plan(scene, PIXELS, random.random)
    for clause in said.caption + said.phrases:
        subject = scene[clause.subject]
        twins = [one for one in scene if one.code == subject.code]
        if clause.landmark is not None:
            landmark = scene[clause.landmark]
            assert TRUE[clause.place](subject.box, landmark.box)
            assert [one.code for one in scene].count(landmark.code) == len(twins) == 1
        elif clause.place and len(twins) == 1:
            assert stands_there(clause.place, subject.box)
        elif clause.place:
            (other,) = (one for one in twins if one is not subject)
            direction = {"top": "above", "bottom": "below"}.get(clause.place, clause.place)
            assert TRUE[direction](subject.box, other.box)
        assert clause.boxes == (1 if clause.place else len(twins))


@settings(max_examples=200, deadline=None)
@given(scenes(), st.randoms(use_true_random=False))
def test_a_caption_speaks_of_every_drawing_once_and_of_at_most_two_relations(scene, random):
    said = plan(scene, PIXELS, random.random)
    spoken = Counter()
    for clause in said.caption:
        spoken[scene[clause.subject].code] += clause.boxes
        if clause.landmark is not None:
            spoken[scene[clause.landmark].code] += 1
    assert spoken == Counter(one.code for one in scene)
    assert sum(clause.landmark is not None for clause in said.caption) <= 2
    assert [clause.subject for clause in said.phrases] == list(range(len(scene)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_words_every_clause_in_its_own_way(language):
    scene = [placed("fox", (0, 0, 9, 9)), placed("cat", (40, 0, 49, 9))]
    clauses = [Clause(0, place) for place in PLACES]
    clauses += [Clause(0, place, 1) for place in TRUE] + [Clause(0)]
    texts = [render_phrase(clause, scene, language, style) for clause in clauses for style in range(2)]
    fox, cat = (one.names[language] for one in scene)
    assert all(fox in text for text in texts)
    assert all((cat in text) == (clause.landmark is not None) for clause, text in zip(clauses, texts[::2], strict=True))
    assert len(set(texts[::2])) == len(clauses), "left is not right, above is not below"
    assert not any(re.search(r"[_:{}|]|  |^ | $", text) for text in texts)


def test_words_stand_in_each_language_s_order():
    scene = [placed("fox", (0, 0, 9, 9)), placed("red apple", (40, 0, 49, 9))]
    said = {language: render_phrase(Clause(0, "left", 1), scene, language, 0) for language in LANGUAGES}
    assert said["en"] == "fox to the left of the red apple"
    assert said["de"] == "fuchs weiter links als roter apfel"
    assert said["es"] == "zorro a la izquierda de manzana roja"
    assert said["ja"] == "赤リンゴの左のキツネの顔"
    assert said["zh"] == "红苹果左边的狐狸"
    assert said["ru"] == "морда лисицы левее, чем красное яблоко"
    assert said["tr"] == "sağında kırmızı elma olan tilki"  # the fox with the apple on *its right*
    below = render_phrase(Clause(0, "below", 1), scene, "tr", 0)
    assert below == "üstünde kırmızı elma olan tilki"


def test_sounds_change_between_words():
    scene = [placed(name, (0, 0, 9, 9)) for name in ("fox", "orca", "owl")]
    assert render_phrase(Clause(0, "left", 1), scene, "fr", 0).endswith(" à gauche d’orque")
    assert render_phrase(Clause(0, "left", 2), scene, "fr", 0).endswith(" à gauche de chouette")
    church = [placed("fox", (0, 0, 9, 9)), placed("church", (5, 5, 14, 14))]
    assert render_caption(Plan((Clause(0), Clause(1)), (), 0), church, "es") == "zorro e iglesia"


def test_english_counts_and_takes_articles():
    assert [indefinite(name) for name in ("fox", "owl", "unicorn", "glasses", "glass of milk", "popcorn")] == [
        "a fox", "an owl", "a unicorn", "glasses", "a glass of milk", "popcorn",
    ]  # fmt: skip
    assert [two(name) for name in ("fox", "computer mouse", "battery", "glass of milk", "scissors", "fish", "bus")] == [
        "two foxes", "two computer mice", "two batteries", "two glasses of milk", "scissors twice", "two fish",
        "two buses",
    ]  # fmt: skip


def test_a_caption_of_twins_counts_them():
    scene = [placed("fox", (0, 0, 9, 9)), placed("fox", (5, 5, 14, 14))]
    said = plan(scene, PIXELS, lambda: 0.0)
    assert render_caption(said, scene, "en") == "two foxes"
    assert render_caption(said, scene, "tr") == "iki tilki"
    assert [clause.boxes for clause in said.phrases] == [2, 2], "they overlap: no word tells them apart"
    assert {render_phrase(clause, scene, "en", 0) for clause in said.phrases} == {"fox"}


def test_most_phrases_are_the_plain_name():
    scene = [placed("fox", (0, 0, 9, 9)), placed("cat", (40, 0, 49, 9)), placed("bus", (20, 40, 40, 60))]
    numbers = iter([(i * 0.6180339) % 1 for i in range(10_000)])
    clauses = [clause for _ in range(500) for clause in plan(scene, PIXELS, numbers.__next__).phrases]
    assert 0.6 < sum(not clause.place for clause in clauses) / len(clauses) < 0.8


def test_there_is_a_grammar_for_each_language_of_the_names():
    assert set(GRAMMARS) == set(LANGUAGES)
    assert all(len(grammar.places) == len(PLACES) for grammar in GRAMMARS.values())
