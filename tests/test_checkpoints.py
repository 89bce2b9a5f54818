"""A checkpoint is what was written or it is not used: damage is named, and the one before goes on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run
from safetensors.torch import load_file, save_file

from opensiglip.checkpoints.manifest import Damaged
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.errors import UserError
from opensiglip.json_file import load_json
from opensiglip.training.log import read_lines

LEARNER, OPTIMIZER, TOKENIZER = "learner.safetensors", "optimizer.safetensors", "tokenizer.json"


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints of 4 and 6 and without its end. Not to be written to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, save_every=2)
    shutil.rmtree(out / "model")
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def newest(out: Path) -> Path:
    found = RunFolder(out).newest()
    assert found is not None and found.name == "step-00000006"
    return found


def test_json_is_read_of_files_alone_and_within_its_bounds(tmp_path: Path) -> None:
    """Of a device: for a pipe that nobody writes to one would wait."""
    (tmp_path / "facts.json").write_text('{"a": 1}')
    assert load_json(tmp_path / "facts.json") == load_json(tmp_path / "facts.json", most=8) == {"a": 1}
    with pytest.raises(OSError, match="has 8 bytes, more than 7"):
        load_json(tmp_path / "facts.json", most=7)
    (tmp_path / "link.json").symlink_to(os.devnull)
    for path in (Path(os.devnull), tmp_path / "link.json", tmp_path):
        with pytest.raises(OSError, match="is no file"):
            load_json(path)


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def zero(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(4096) + data[len(data) // 2 + 4096 :])


def older(path: Path) -> None:
    shutil.copy(path.parent.with_name("step-00000004") / path.name, path)


def permute(path: Path) -> None:
    facts = json.loads(path.read_text())
    words = list(facts["model"]["vocab"])
    facts["model"]["vocab"] = dict(zip(words, reversed(range(len(words))), strict=True))
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False))


DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    *((file, harm) for file in (LEARNER, OPTIMIZER) for harm in (flip, zero, older, Path.unlink)),
    (OPTIMIZER, lambda path: save_file({}, path)),
    *((TOKENIZER, harm) for harm in (permute, flip, Path.unlink)),
    ("state.json", older),
    ("state.json", Path.unlink),
    ("state.json", lambda path: path.write_text("[]")),
    ("opensiglip.json", flip),
    ("manifest.json", older),
    ("manifest.json", lambda path: path.write_text("{}")),
]


@pytest.mark.parametrize(("file", "harm"), DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    file: str, harm: Callable[[Path], object], whole: Path, copy: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(newest(copy) / file)
    run(copy, save_every=2, resume=True)
    said = capsys.readouterr().out
    assert f"{newest(copy)} is damaged (" in said and "the one before, step-00000004, is used." in said
    assert [path.name for path in RunFolder(copy).checkpoints.iterdir() if path.suffix] == ["step-00000006.damaged"]
    for name in (LEARNER, OPTIMIZER, "state.json", "manifest.json"):
        assert (newest(copy) / name).read_bytes() == (newest(whole) / name).read_bytes()
    assert [row["loss"] for row in read_lines(copy / "metrics.jsonl")] == [
        row["loss"] for row in read_lines(whole / "metrics.jsonl")
    ]


def test_an_undamaged_checkpoint_says_nothing(copy: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run(copy, save_every=2, resume=True)
    assert "damaged" not in capsys.readouterr().out


def test_where_all_are_damaged_it_is_a_sentence_and_nothing_is_trained(copy: Path, run: Run) -> None:
    for checkpoint in RunFolder(copy).complete():
        flip(checkpoint / LEARNER)
    with pytest.raises(Damaged, match="step-00000004 is damaged .* and so are those after it") as caught:
        run(copy, save_every=2, resume=True)
    assert "\n" not in str(caught.value)


def as_of_an_older_version(out: Path) -> None:
    """No manifest, and the tokenizer beside the model alone."""
    (out / "model").mkdir()
    for file in (TOKENIZER, "tokenizer_config.json", "opensiglip.json"):
        shutil.copy(out / "start" / file, out / "model")
        for checkpoint in RunFolder(out).complete():
            (checkpoint / file).unlink()
    for checkpoint in RunFolder(out).complete():
        (checkpoint / "manifest.json").unlink()
    shutil.rmtree(out / "start")


def test_a_checkpoint_of_an_older_version_goes_on_and_is_said_to_be_unverified(
    whole: Path, copy: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    as_of_an_older_version(copy)
    shutil.rmtree(newest(copy))
    assert len(Pretrained.open(copy).pipeline or ()) > 0
    assert capsys.readouterr().out.count("written without checksums") == 1
    run(copy, save_every=2, resume=True)
    assert capsys.readouterr().out.count("step-00000004 was written without checksums") == 1
    for name in (LEARNER, OPTIMIZER, TOKENIZER):
        assert (newest(copy) / name).read_bytes() == (newest(whole) / name).read_bytes()


def moments(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def harm(checkpoint: Path) -> None:
        tensors = load_file(checkpoint / OPTIMIZER)
        change(tensors)
        save_file(tensors, checkpoint / OPTIMIZER)

    return harm


BIAS = "model.logit_bias"
UNFIT = {
    "has model.logit_bias/exp_avg as \\[1, 3\\], here it is \\[1\\]": moments(
        lambda t: t.update({f"{BIAS}/exp_avg": t[f"{BIAS}/exp_avg"].expand(1, 3).contiguous()})
    ),
    "lacks model.logit_bias/exp_avg_sq": moments(lambda t: t.pop(f"{BIAS}/exp_avg_sq")),
    "has stranger, which": moments(
        lambda t: t.update({f"stranger/{k}": t[f"{BIAS}/{k}"].clone() for k in ("step", "exp_avg")})
    ),
    "is of step 6, its model.logit_bias/step of 60": moments(lambda t: t[f"{BIAS}/step"].mul_(10)),
    "has an optimizer without state after 6 steps": moments(dict.clear),
    "is damaged \\(optimizer.safetensors: .*the one before|lacks": lambda path: flip(path / OPTIMIZER, 0.0001),
}


@pytest.mark.parametrize("said", UNFIT)
def test_without_checksums_names_shapes_and_steps_are_checked_before_the_optimizer_has_them(
    said: str, copy: Path, run: Run
) -> None:
    as_of_an_older_version(copy)
    shutil.rmtree(RunFolder(copy).checkpoint(4))
    UNFIT[said](newest(copy))
    with pytest.raises(UserError, match=said.partition(".*the")[0]) as caught:
        run(copy, save_every=2, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_under_another_steps_name_is_damaged(copy: Path, run: Run) -> None:
    shutil.rmtree(newest(copy))
    RunFolder(copy).checkpoint(4).rename(RunFolder(copy).checkpoint(6))
    with pytest.raises(Damaged, match="state.json is of step 4"):
        run(copy, save_every=2, resume=True)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b""), permute])
def test_a_tokenizer_that_the_end_left_broken_strands_nothing(
    harm: Callable[[Path], object], whole: Path, copy: Path, run: Run
) -> None:
    """What a kill in the export used to leave: the run's own copy, and that of the start, are not read again."""
    shutil.copytree(copy / "start", copy / "model")
    for place in ("model", "start"):
        harm(copy / place / TOKENIZER)
    assert Pretrained.open(copy).pipeline is not None
    run(copy, save_every=2, resume=True)
    assert (copy / "model" / TOKENIZER).read_bytes() == (newest(whole) / TOKENIZER).read_bytes()


def test_a_checkpoint_is_opened_and_exported_by_its_name(copy: Path) -> None:
    checkpoint = RunFolder(copy).checkpoint(4)
    found = Pretrained.open(checkpoint)
    expected = load_file(checkpoint / LEARNER)["model.logit_bias"]
    assert found.pipeline is not None and float(found.model.logit_bias.detach()) == float(expected)
    flip(checkpoint / LEARNER)
    with pytest.raises(Damaged, match="other bytes than were written"):
        Pretrained.open(checkpoint)


def test_the_newest_stay_and_so_do_those_of_keep(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "run", save_every=1, keep_last=3, keep=[0.2], steps=10)
    kept = [path.name for path in RunFolder(tmp_path / "run").complete()]
    assert kept == [f"step-{step:08d}" for step in (2, 8, 9, 10)]


def test_what_is_missing_of_the_metrics_is_said(copy: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = copy / "metrics.jsonl"
    rows = metrics.read_bytes().splitlines(keepends=True)
    shutil.rmtree(newest(copy))
    metrics.write_bytes(b"".join([*rows[:2], b"\xff\x00 no row\n", *rows[3:]]) + b'{"step": 6, "lo')
    run(copy, save_every=2, resume=True)
    assert "1 of 7 rows can't be read and are left out" in capsys.readouterr().out
    assert [row["step"] for row in read_lines(metrics)] == [0, 1, 3, 4, 5]
    shutil.rmtree(newest(copy))
    metrics.unlink()
    run(copy, save_every=2, resume=True)
    assert "metrics.jsonl is missing: the rows of the steps before 4 are lost" in capsys.readouterr().out
    assert [row["step"] for row in read_lines(metrics)] == [4, 5]
    metrics.unlink()
    metrics.mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl can't be read \(Is a directory\); move it away"):
        run(copy, save_every=2, resume=True)
