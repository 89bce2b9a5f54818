"""What notebooks show of results."""

import json

from opensiglip.reports.notebook import EvaluationResult, TrainingResult


def test_an_evaluation_is_a_table_in_a_notebook_and_plain_json_elsewhere() -> None:
    metrics = {"images": 3, "image_to_text_r1": 0.5, "image_to_text_r1_ci95": [0.25, 0.75]}
    record = {"model": "<m>", "data": "folder", "examples": 3, "tasks": {"retrieval": metrics}, "left_out": {"x": "y"}}
    found = EvaluationResult(record | {"notes": ["few"]})
    shown = found._repr_html_()
    assert "<td>0.5000</td><td>0.2500 – 0.7500</td>" in shown and "image → text, first hit (R@1)" in shown
    assert "&lt;m&gt;" in shown and "<m>" not in shown and "x left out: y" in shown and "<p>few</p>" in shown
    assert json.loads(json.dumps(found)) == found and isinstance(found, dict)


def test_a_run_is_a_table_of_its_figures() -> None:
    summary = {"recipe": "siglip", "steps": 5, "folder": "runs/<x>", "figures": {"loss, first and last": "9 -> 1"}}
    shown = TrainingResult(summary)._repr_html_()
    assert "loss, first and last" in shown and "9 -&gt; 1" in shown and "runs/&lt;x&gt;" in shown
    assert "first rank" in TrainingResult()._repr_html_()
