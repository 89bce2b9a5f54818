"""JSON files are read within bounds, and what is wrong with one is an OSError or a ValueError."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.errors import UserError
from opensiglip.evaluation import results
from opensiglip.json_file import SIDECAR, load_json
from opensiglip.models.model import check_host, read_sidecar

DEEP = "[" * 100_000

# What may stand at a path in the place of JSON.
BAD: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "half of it": lambda path: path.write_text("{"),
    "no text": lambda path: path.write_bytes(b'{"a": "\xff"}'),
    "lists in lists": lambda path: path.write_text(DEEP),
}


@pytest.fixture(params=list(BAD))
def bad(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return BAD[request.param]


def test_what_is_no_json_is_one_of_two_errors(tmp_path: Path, bad: Callable[[Path], object]) -> None:
    bad(tmp_path / "file.json")
    with pytest.raises((OSError, ValueError)):
        load_json(tmp_path / "file.json")


def test_a_file_over_the_bound_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text("[1, 2]")
    assert load_json(file, 6) == [1, 2]
    with pytest.raises(OSError, match="has 6 bytes, more than 5"):
        load_json(file, 5)


def test_a_models_two_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for name, read in ((SIDECAR, read_sidecar), ("config.json", check_host)):
        (tmp_path / name).write_text(DEEP)
        with pytest.raises(
            UserError, match=rf"{name} is not readable JSON \(it is nested too deeply\); export the run"
        ):
            read(tmp_path)


def test_a_folder_whose_config_can_not_be_read_is_no_run(tmp_path: Path, bad: Callable[[Path], object]) -> None:
    run = RunFolder(tmp_path)
    bad(run.config)
    assert not run.begun


def test_an_evaluation_may_be_as_large_as_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / results.FILE
    record = {"model": "m", "data": "d", "split": "val", "examples": 1, "seed": 0, "tasks": {}, "values": {}}
    file.write_text(results.to_json(record))
    monkeypatch.setattr(results, "LARGEST", file.stat().st_size)
    assert results.load(file)["model"] == "m"
    monkeypatch.setattr(results, "LARGEST", file.stat().st_size - 1)
    with pytest.raises(UserError, match="is not an evaluation .* more than"):
        results.load(file)
