"""Every kind of value at every column of metadata.jsonl, through the loader: a bad row costs only itself."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import Rectangles

from opensiglip import data
from opensiglip.data.example import Example, reason_of
from opensiglip.data.fields.field import SecondTexts, Texts
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.sources import folder as folder_module
from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.folder import Folder
from opensiglip.data.sources.metadata import EXTRAS
from opensiglip.data.tasks import TASKS
from opensiglip.data.text import TextPipeline
from opensiglip.evaluation.encode import framed_examples, readable_examples

BATCH = 50
COLUMNS = [
    *("file_name", "captions", "caption", "text", "lang", "captions_i18n", "captions_synthetic", "regions", "objects"),
    *("split", "width", "height", *EXTRAS),
]
# Keys and strings that some column gives a meaning to: so that values are often nearly right.
KEYS = ["bbox", "phrase", "phrases", "n_boxes", "categories", "lang", "text", "source", "question", "answer", "label"]
KEYS += ["polygons", "en", "de"]
WORDS = ["0.png", "en", "de", "val", "train", "../0.png", "/", "\0", "\ud800", "a\ud800b", "NaN", "</s>"]
NUMBERS = [0, -1, 1, 8, 16, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 10**400, 2**63, -(2**63) - 1]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-20, 20),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(st.characters(), max_size=12),
    st.integers(1, 30_000).map(lambda letters: "x" * letters),
)
numbers = st.sampled_from(NUMBERS) | st.integers(-2, 20) | st.floats(-2, 20)
outlines = st.lists(numbers, min_size=4, max_size=20) | st.integers(3, 5000).map(lambda count: [0.5, 9, 7] * 2 * count)
shapes = st.fixed_dictionaries(
    {},
    optional={
        "bbox": st.lists(numbers, min_size=4, max_size=4) | st.lists(st.lists(numbers, min_size=4, max_size=4)),
        "polygons": st.lists(outlines, max_size=3) | scalars,
        **dict.fromkeys(("phrase", "label", "text", "question", "answer", "lang", "source", "n_boxes"), scalars),
        "categories": st.lists(scalars, max_size=3),
        "phrases": st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), scalars, max_size=3),
    },
)
values = st.recursive(
    scalars | shapes,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=6,
) | st.integers(1, 2000).map(lambda depth: json.loads("[" * min(depth, 900) + "]" * min(depth, 900)))


def lines_of(column: str, count: int) -> list[str]:
    """So many lines with drawn values at a column, each of an image of its own and with a good caption."""
    lines: list[str] = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def draw(value: Any) -> None:
        line = {"file_name": f"{len(lines)}.png", "caption": "a red square", "text": "a square"} | {column: value}
        lines.append(json.dumps(line))

    draw()
    return lines[:count]


@pytest.mark.parametrize("column", COLUMNS)
def test_whatever_stands_in_a_column_costs_at_most_its_row(
    column: str,
    tmp_path: Path,
    pipeline: TextPipeline,
    monkeypatch: pytest.MonkeyPatch,
    torture_count: Callable[[int], int],
) -> None:
    lines = lines_of(column, torture_count(8))
    Image.new("RGB", (16, 16), "red").save(tmp_path / "0.png")
    for number in range(1, len(lines)):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join([*lines, '{"file_name": "0.png", "caption": "one good row"}']))
    monkeypatch.setattr(folder_module, "BROKEN_LINES", 1.0)  # as if ten good lines stood beside each
    # The layout is given, as boxes at random look like those of another one.
    source = Folder(str(tmp_path), layout=BoxLayout.parse("xyxy"))
    boxes = data.BoxFormat()
    weights = dict.fromkeys(TASKS, 1.0)
    fields = [
        *(Texts(as_target=True), SecondTexts(), data.Captions(("cap", "aref", "gcap"), boxes=boxes)),
        *(data.Mixture(weights, texts=4, boxes=boxes), data.Mixture(weights, texts=2, boxes=boxes, paired=True)),
    ]
    steps = Steps(
        DataPlan(sources=[source], frame=data.Frame(16), fields=fields, pipeline=pipeline, batch_size=BATCH, seed=0)
    )
    drawn = Counter[str]()
    for step in range(-(-len(source) // BATCH)):
        drawn += steps[step].skipped
    ours = [reason for reason in (*source.skipped, *drawn) if ".py:" not in reason]
    assert all(reason.isascii() for reason in ours)  # of our words only: nothing of the row's
    faults = {reason: count for reason, count in drawn.items() if ".py:" in reason}
    print(
        f"{column:<20} {len(lines):>6} lines, {len(source):>6} images, {source.skipped.total():>6} lines and parts "
        f"refused for {len(source.skipped):>2} reasons, {drawn.total():>5} passed over when drawn, {faults or 'none'} "
        "by an exception"
    )


def test_whatever_a_row_raises_is_that_rows_in_evaluation_too(pipeline: TextPipeline) -> None:
    class Raising(Rectangles):
        def example(self, index: int, language: str | None = None) -> Example:
            if index % 4 == 1:
                raise RuntimeError("somebody's own words")
            return super().example(index, language)

    source = Raising(40)
    assert len(list(readable_examples(source, 40))) == len(list(framed_examples(source, data.Frame(16), 40))) == 30
    plan = DataPlan(sources=[source], frame=data.Frame(16), fields=[Texts()], pipeline=pipeline, batch_size=30, seed=0)
    skipped = Steps(plan)[0].skipped
    assert skipped.total() > 0 and all(re.fullmatch(r"RuntimeError in \w+\.py:\d+", reason) for reason in skipped)
    with pytest.raises(MemoryError):
        reason_of(MemoryError())
