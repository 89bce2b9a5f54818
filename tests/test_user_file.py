"""A user's own file: what it defines is found by name, also in a fresh process, and is read again when edited."""

import os
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from forkserver import context
from torch.utils.data import DataLoader
from toys import Rectangles

from opensiglip.data.loader import DataPlan, Steps, loader
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.recipes import find_recipe
from opensiglip.user_file import load

FILE = """
class Doubled:
    def __init__(self, number):
        self.number = number

    def __call__(self):
        return 2 * self.number


def make(number):
    return Doubled(number)
"""


RECIPE = """
from dataclasses import replace

import torch

from opensiglip.data.fields.field import Field
from opensiglip.recipes import siglip


class Brightest(Field):
    def draw(self, visit, rng, pipeline):
        return int(visit.image.max())

    def collate(self, drawn, pipeline):
        return {"brightest": torch.tensor(drawn)}


def mine():
    recipe = siglip(size="tiny", resolution=16)
    return replace(recipe, fields=[*recipe.fields, Brightest()])
"""


def call(thing, answers) -> None:
    answers.put(thing())


@pytest.mark.parametrize("name", ["mine.py", "json.py", "my.runs é.py"])
def test_an_object_of_the_file_reaches_a_process_that_has_not_read_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILE)
    make = load("recipe", str(tmp_path / name), "make")
    spawn = get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=call, args=(make(21), answers), daemon=True)
    process.start()
    try:
        assert answers.get(timeout=60) == 42
    finally:
        process.join(timeout=10)
    assert process.exitcode == 0


def test_a_recipes_own_field_draws_in_data_workers_that_begin_anew(
    tmp_path: Path, pipeline: TextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, Windows and from Python 3.14 on: what was read here reaches the worker by its name alone."""
    (tmp_path / "mine.py").write_text(RECIPE)
    recipe = find_recipe(f"{tmp_path / 'mine.py'}:mine")()
    fields = recipe.fields
    plan = DataPlan(sources=[Rectangles(5)], frame=recipe.frame, fields=fields, pipeline=pipeline, batch_size=4, seed=0)
    monkeypatch.setattr("opensiglip.data.loader.DataLoader", partial(DataLoader, multiprocessing_context=context))
    (anew,) = loader(plan, 0, 1, workers=1, pin=False)
    here = Steps(plan)[0]
    assert anew.parts[0]["brightest"].tolist() == here.parts[0]["brightest"].tolist()
    assert torch.equal(anew.parts[0]["image"], here.parts[0]["image"])


def test_a_file_is_read_once_and_again_when_it_was_edited(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("class Mine: pass")
    first = load("task", str(path), "Mine")
    assert load("task", str(path), "Mine") is first
    path.write_text("class Mine: edited = True")
    os.utime(path, (0, 0))
    assert load("task", str(path), "Mine").edited


def test_names_of_files_in_two_folders_do_not_meet(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"where = {folder!r}")
    assert [load("task", str(tmp_path / folder / "mine.py"), "where") for folder in ("a", "b", "a")] == ["a", "b", "a"]
    assert load("task", str(tmp_path / "a" / "mine.py"), "nothing") is None


@pytest.mark.parametrize(("text", "part"), [(None, "does not exist"), ("def (", "is not Python: ")])
def test_a_file_that_cannot_be_read_is_one_sentence(text: str | None, part: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=part):
        load("task", str(tmp_path / "mine.py"), "mine")
