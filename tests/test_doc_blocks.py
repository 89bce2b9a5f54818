"""Every Python block in README.md and docs/ runs, or stands below with the reason why it does not."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# Pages whose blocks another test file runs, since it has what they need.
ELSEWHERE = {
    "add-a-task.md": "test_tasks.py",
    "pretrained-weights.md": "test_export.py",
    "study.md": "test_study.py",
    "the-loss-alone.md": "test_bridge.py",
}
# Blocks that no test runs, by a line of theirs.
NOT_RUN = {
    "import fiftyone": "FiftyOne is no dependency; test_fiftyone.py compares with what it writes",
    "from gradio_client import Client": "asks a demo that is being served",
    'model.search("photos.index"': "searches an index that is not there; test_search_index.py searches one",
    "from openai import OpenAI": "asks a server; test_serve.py asks one with the same client",
    'processor = AutoImageProcessor.from_pretrained("naflex-onnx")': "test_native_aspect.py runs such an export",
    'model, processor = AutoModel.from_pretrained("runs/naflex/model")': "test_native_aspect.py runs such a model",
    'model = opensiglip.load("runs/boxes")': "locates each phrase of photographs that the reader has, twice",
    'photos = Path("PHOTOS")': "cuts photos that the reader has",
    'Path("judged", ': "reads evaluations of photographs that the reader has",
    'run_evaluation(model, "PHOTOS-clean"': "judges runs on photographs that the reader has",
    "from opensiglip.bridge.mteb import MTEBModel": "fetches tasks; test_neighbours.py runs toy ones",
}
SHORTER = {
    '"runs/learner"': '"runs/mine"',
    '("runs/short", "runs/long")': '("runs/mine", "runs/mine")',
    '"runs/teacher"': '"runs/flickr"',
    "STEPS, cpu = 10": "STEPS, cpu = 1",
    "steps=500": "steps=2, batch_size=8, held_out=0, workers=0",
    'data=["scenes"]': 'data=["scenes:drawings=9"]',
    'open_source("photos"': 'open_source("scenes:drawings=9,count=9"',
}


def blocks() -> Iterator[Any]:
    for page in PAGES:
        for found in BLOCK.finditer(text := page.read_text(encoding="utf-8")):
            line = text[: found.start()].count("\n") + 2
            yield pytest.param(page, found[1], id=f"{page.name}:{line}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., Any]) -> Path:
    """The folder that the pages speak of: runs/mine, runs/flickr, photos and scenes."""
    root = tmp_path_factory.mktemp("world")
    run(root / "runs" / "mine", steps=2)
    shutil.copytree(root / "runs" / "mine", root / "runs" / "flickr")
    (root / "scenes").mkdir()
    (root / "photos").mkdir()
    (root / "docs" / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("photo.jpg", "a.jpg", "b.jpg", "scenes/10.png", "photos/7.jpg"):
        Image.fromarray(pixels).save(root / name)
    return root


@pytest.mark.filterwarnings("ignore")  # a page need not close files
@pytest.mark.parametrize(("page", "block"), [*blocks()])
def test_a_block_of_the_documents_runs(
    page: Path, block: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.name in ELSEWHERE:
        assert page.name in (ROOT / "tests" / ELSEWHERE[page.name]).read_text(encoding="utf-8")
        return
    if any(line in block for line in NOT_RUN):
        return
    for whole, short in SHORTER.items():
        block = block.replace(whole, short)
    monkeypatch.chdir(tmp_path if "opensiglip.train(" in block else world)
    with Image.open(world / "photo.jpg") as photo:
        names: dict[str, Any] = {"__name__": "block", "image": photo.copy()}
    exec(compile(block, str(page), "exec"), names)


def test_what_is_not_run_is_still_there() -> None:
    whole = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [line for line in NOT_RUN if line not in whole] == []
    assert set(ELSEWHERE) <= {page.name for page in PAGES}
