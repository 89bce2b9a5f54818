"""The notebooks of docs/tutorials: one runs here, and every command of both is one that the CLI takes."""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from opensiglip.apps import commands, plan, train
from opensiglip.apps.cli import main

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
COMMAND = re.compile(r"^(?:!|    )(opensiglip (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)


def cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def typed() -> Iterator[Any]:
    """Each command line of the notebooks."""
    for notebook in NOTEBOOKS:
        for cell in cells(notebook):
            for line in COMMAND.findall(source(cell)):
                yield pytest.param(re.sub(r"\{\w+\}", "FOLDER", line.replace("\\\n", " ")), id=notebook.stem)


@pytest.mark.filterwarnings("ignore")  # a tutorial need not close files
def test_the_first_tutorial_runs_from_a_folder_to_a_served_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells(DOCS / "tutorials/first-model.ipynb"):
        if cell["cell_type"] == "code":
            short = source(cell).replace("steps=400", "steps=40")  # the suite has ten minutes
            exec(compile(short, "first-model.ipynb", "exec"), names)
    assert names["result"]["steps"] == 40 and (tmp_path / "run/report.html").is_file()
    assert names["server"].returncode == 0
    assert {row["label"] for row in names["answer"]["data"][0]["labels"]} == set(names["labels"])
    assert len(names["hits"]) == 4


@pytest.mark.parametrize("line", [*typed()])
def test_a_command_of_a_notebook_is_one_that_the_command_line_takes(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[Any] = []
    for kind in (commands.Command, plan.PlanRecipe, train.Train):
        monkeypatch.setattr(kind, "call", lambda self, flags: called.append(flags))
    code = main(shlex.split(line)[1:])
    assert code == 0 and len(called) == 1, capsys.readouterr().err


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_of_a_notebook_is_python(notebook: Path) -> None:
    for cell in cells(notebook):
        if cell["cell_type"] == "code":
            text = re.sub(r"^[!%](?:[^\n]*\\\n)*[^\n]*$", "pass", source(cell), flags=re.MULTILINE)
            compile(text, notebook.name, "exec")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_path_of_a_machine_stands_in_a_notebook(notebook: Path) -> None:
    assert re.findall(r"/(?:tmp|work|root|home|Users)/", notebook.read_text(encoding="utf-8")) == []


def test_the_first_tutorial_shows_what_its_cells_printed() -> None:
    code = [cell for cell in cells(DOCS / "tutorials/first-model.ipynb") if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
    assert all(cell["outputs"] for cell in code)


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """docs/notebook_page.py, which the site's hook imports."""
    spec = importlib.util.spec_from_file_location("notebook_page", DOCS / "notebook_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_has_every_cell_and_output_in_order(notebook: Path, pages: ModuleType) -> None:
    page, place = pages.notebook_page(notebook), 0
    for cell in cells(notebook):
        wanted = [source(cell).split("\n\n")[0]]
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            png = "".join(data.get("image/png", ())).strip()
            wanted.append(png or "".join(data.get("text/html", output.get("text", data.get("text/plain", ())))).strip())
        for text in wanted:
            place = page.index(text, place)
    assert page.startswith("# ") and f"]({notebook.name})" in page
