"""Going on from another run: as NaFlex, at another resolution, with other patches; and what can't be gone on from."""

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from opensiglip import user_file
from opensiglip.apps import cli
from opensiglip.checkpoints.formats.own import described, read_pipeline
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.fields.naflex import pack
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.models.resize import resize_positions, stretch_positions
from opensiglip.models.sizes import SHAPES, Shape
from opensiglip.optim import adamw, rate
from opensiglip.recipes import Recipe, find_recipe
from opensiglip.training.continued import Origin, Taken, origin, take_over
from opensiglip.training.learner import Learner
from opensiglip.training.log import read_lines
from opensiglip.training.longer_texts import ShortTexts
from opensiglip.training.optimizers.make import make
from opensiglip.training.record import inherited
from opensiglip.training.run import train
from opensiglip.types import Patches

STEPS, NINETY = 20, 18
MORE = """

def patched(*, patch: int = 8):
    '''The same with other patches.'''
    recipe = small()
    side = 4 * patch
    taught = [replace_field(field, side, patch) for field in recipe.fields]
    return replace(recipe, architecture=replace(recipe.architecture, patch=patch, resolution=side), fields=taught,
                   frame=replace(recipe.frame, resolution=side))


def replace_field(field, side, patch):
    from opensiglip.data.fields.views import PatchMask, Views
    if isinstance(field, Views):
        return Views(side, patch, wholes=1, locals=8, start=0.8)
    return PatchMask(side, patch, ratio=0.5, start=0.8) if isinstance(field, PatchMask) else field


def naflex(*, resolution: int = 32, length: int = 64, depth: int = 1, budgets: tuple[int, ...] = (8, 16, 30)):
    '''NaFlex, small.'''
    from opensiglip.recipes import siglip2_naflex
    recipe = siglip2_naflex(size="tiny", resolution=resolution, length=length, budgets=budgets)
    shape = Shape(width=32, depth=2, mlp=64, heads=2)
    networks = replace(recipe.architecture, vision=shape, text=shape, decoder=replace(shape, depth=depth))
    return replace(recipe, architecture=networks)
"""


@pytest.fixture(scope="module")
def recipes(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The small recipe, its NaFlex and one with other patches, by name."""
    file = tmp_path_factory.mktemp("recipes") / "small_continued.py"
    file.write_text(Path(recipe.rpartition(":")[0]).read_text() + MORE)
    return lambda name: f"{file}:{name}"


@pytest.fixture(scope="module")
def before(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of which the checkpoints at 90 and 95 % stay."""
    out = tmp_path_factory.mktemp("before") / "run"
    run(out, steps=STEPS, save_every=7, keep=(0.9, 0.95), warmup=2)
    return out


def built(recipe: str, **keywords: Any) -> tuple[Recipe, Learner, torch.optim.Optimizer]:
    torch.manual_seed(1)
    made = find_recipe(recipe)(**keywords)
    learner = Learner(Model.new(made.architecture, 300), made.objectives)
    return made, learner, adamw(learner, 1e-3, 0.1)


def take(start: Origin, learner: Learner, optimizer: torch.optim.Optimizer) -> Taken:
    pipeline = read_pipeline(described(start.checkpoint)).with_length(learner.model.architecture.length)
    return take_over(start, learner, optimizer, ShortTexts(pipeline, []))


def weights(before: Path) -> dict[str, torch.Tensor]:
    return load_file(before / f"checkpoints/step-{NINETY:08d}/learner.safetensors")


def test_checkpoints_that_are_to_stay_stay(before: Path) -> None:
    steps = sorted(int(path.name.partition("-")[2]) for path in (before / "checkpoints").iterdir())
    assert steps == [18, 19, 20], "and of those of every 7 steps none"
    state = json.loads((before / "checkpoints/step-00000019/state.json").read_text())
    assert state["progress"] == 0.95


@torch.no_grad()
def test_naflex_begins_as_the_model_it_continues(before: Path, recipes: Callable[[str], str]) -> None:
    """On a square image of the old resolution both say the same: nothing was lost on the way."""
    _, learner, optimizer = built(recipes("naflex"))
    assert take(origin(str(before), 0.9), learner, optimizer) == ([], set())
    _, old, _ = built(recipes("small"))
    old.load_state_dict(weights(before))
    image = torch.rand(3, 3, 32, 32) * 2 - 1
    said, seen = (one.model.eval().vision for one in (old, learner))
    expected, found = said(image), seen(pack(list(image), 8, 20))
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-5)
    ids = torch.randint(300, (2, 64))
    assert torch.equal(learner.model.text(ids).pooled, old.model.text(ids).pooled)


def test_the_optimizers_state_goes_on_but_for_what_was_resized(before: Path, recipes: Callable[[str], str]) -> None:
    moments = load_file(before / f"checkpoints/step-{NINETY:08d}/optimizer.safetensors")
    for name, keywords, fresh in (
        ("naflex", {}, ()),
        ("small", {"resolution": 64}, ("position",)),
        ("patched", {"patch": 7}, ("patch",)),
    ):
        _, learner, optimizer = built(recipes(name), **keywords)
        resized, _ = take(origin(f"{before}/checkpoints/step-{NINETY:08d}", 0.5), learner, optimizer)
        assert all(any(f"{word}_embedding" in one for word in fresh) for one in resized)
        assert len(resized) == (2 if fresh else 0), "the tower's and the teacher's"
        for key, parameter in learner.named_parameters():
            state = optimizer.state.get(parameter, {})
            if key in resized or f"{key}/step" not in moments:
                assert not state
                continue
            for part in ("exp_avg", "exp_avg_sq"):
                expected = moments[f"{key}/{part}"]
                if state[part].shape != expected.shape:  # a convolution as a matrix
                    expected = expected.permute(0, 2, 3, 1).flatten(1)
                assert torch.equal(state[part], expected), key
            assert state["step"] == moments[f"{key}/step"]
    another = make("adafactor", learner, 1e-3, 0.1)
    take(origin(f"{before}/checkpoints/step-{NINETY:08d}", 0.5), learner, another)
    assert not another.state, "it has no use for AdamW's"


def test_another_resolution_resizes_positions_of_tower_and_teacher(before: Path, recipes: Callable[[str], str]) -> None:
    _, learner, optimizer = built(recipes("small"), resolution=64)
    take(origin(str(before), 0.9), learner, optimizer)
    found, old = learner.state_dict(), weights(before)
    for tower in ("model.vision.tower", "teacher.copy.tower"):
        name = f"{tower}.embeddings.position_embedding.weight"
        assert torch.equal(found[name], resize_positions(old[name], 8, 8))
    same = [name for name in old if "position_embedding" not in name or "vision" not in name and "teacher" not in name]
    assert all(torch.equal(found[name], old[name]) for name in same)


LENGTHS = ("model.text.tower.embeddings.position_embedding.weight", "model.decoder.position")


def test_longer_texts_keep_their_first_positions_and_the_optimizers_state_of_all_else(
    before: Path, recipes: Callable[[str], str]
) -> None:
    moments = load_file(before / f"checkpoints/step-{NINETY:08d}/optimizer.safetensors")
    _, learner, optimizer = built(recipes("naflex"), length=80)
    assert sorted(take(origin(str(before), 0.9), learner, optimizer).resized) == sorted(LENGTHS)
    found, old = learner.state_dict(), weights(before)
    for name in LENGTHS:
        assert len(old[name]) == 64 and len(found[name]) == 80
        stretched = stretch_positions(name, old[name], found[name])
        assert torch.equal(found[name][:20], old[name][:20])
        assert torch.equal(found[name], stretched) == ("decoder" in name), "a text tower's are fitted"
    for name, parameter in learner.named_parameters():
        state = optimizer.state.get(parameter, {})
        assert bool(state) == (name not in LENGTHS and f"{name}/step" in moments), name
        assert not state or state["step"] == moments[f"{name}/step"]


def test_a_run_goes_on_with_longer_texts_by_one_command(
    siglip2_at_95: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["train", "siglip2", "--continue-from", str(siglip2_at_95), "--out", str(out), "--length", "80"]
    for flags, fits in ((["--dry-run"], 0), ([], 1)):
        assert cli.main([*words, *flags]) == 0
        said = capsys.readouterr().out
        assert f"resized: {', '.join(sorted(LENGTHS, reverse=True))}\n" in said
        assert said.count("text        grows from 64 to 80 tokens: ") == fits and out.exists() == bool(fits)
    assert read_lines(out / "metrics.jsonl")[0]["step"] == 19
    ended = Pretrained.open(str(out))
    assert ended.pipeline is not None and ended.pipeline.policy.length == 80
    assert len(ended.pipeline.fixed("a red square")) == 80 and ended.model.architecture.length == 80
    checkpoint = out / "checkpoints" / "step-00000020"
    last = load_file(checkpoint / "learner.safetensors")
    before = load_file(siglip2_at_95 / "checkpoints" / "step-00000019" / "learner.safetensors")
    steps = load_file(checkpoint / "optimizer.safetensors")
    for name in LENGTHS:
        assert len(last[name]) == 80
        assert (last[name][:20] - before[name][:20]).abs().max() < 1e-2, "one step of the optimizer away"
        assert steps[f"{name}/step"] == 1
    assert steps["model.text.tower.embeddings.token_embedding.weight/step"] == 20


@pytest.mark.parametrize(
    ("name", "changes", "share", "last"),
    [("naflex", {}, 0.9, 28), ("small", {"resolution": 64}, 0.95, STEPS), ("patched", {"patch": 7}, 0.95, STEPS)],
)
def test_a_run_goes_on_along_its_schedule_with_all_losses(
    name: str,
    changes: dict[str, Any],
    share: float,
    last: int,
    before: Path,
    recipes: Callable[[str], str],
    folder: str,
    tmp_path: Path,
) -> None:
    out, begin = tmp_path / "after", round(share * STEPS)
    words = ["train", recipes(name), "--continue-from", str(before), "--out", str(out), "--workers", "0"]
    words += [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    assert cli.main([*words, "--held-out", "4"]) == 0
    rows = read_lines(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(begin, last))
    stretch = (last - begin) / (STEPS - begin)
    places = [begin + (row["step"] - begin) / stretch for row in rows]
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 * rate(place, STEPS, 2) for place in places])
    terms = {key for key in rows[0] if key.startswith("loss/")}
    taught = {"loss/local_to_global", "loss/masked_patches"} if name != "naflex" else set()
    assert terms == {"loss/sigmoid", "loss/caption"} | taught
    config = json.loads((out / "config.json").read_text())
    was = json.loads((before / "config.json").read_text())
    assert config["train"] == was["train"] | {
        "continue_from": str(before),
        "held_out": 4,
        "keep": [],
    }
    summary = json.loads((out / "summary.json").read_text())
    assert summary["held_out"]["examples"] == 4 and set(summary["held_out"]) >= {"grounding", "retrieval"}
    assert (out / "report.html").is_file()
    # Two rounds of NaFlex are 48 images, and two steps more have half a batch each at least.
    least, most = (48 + 8, 48 + 16) if name == "naflex" else (8, 8)
    assert begin * 8 + least <= summary["images_seen"] <= begin * 8 + most


@pytest.fixture(scope="module")
def siglip2_at_95(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of the recipe siglip2 itself, size tiny made small, of which the checkpoint at 95 % stays."""
    out = tmp_path_factory.mktemp("siglip2") / "run"
    words = (
        "--size tiny --resolution 32 --steps 20 --keep 0.95 --batch-size 4 --held-out 0 --precision fp32 --workers 0"
        " --no-memory-check"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", Shape(width=32, depth=2, mlp=64, heads=2))
        assert (
            cli.main(["train", "siglip2", "--data", folder, "--out", str(out), "--vocabulary", "300", *words.split()])
            == 0
        )
        yield out


@pytest.mark.parametrize(
    ("flags", "resized"),
    [("--resolution 64", "position"), ("--size 32x2x64x2/16 --resolution 64", "patch")],
)
def test_siglip2_goes_on_at_another_resolution_or_patch_with_all_losses_by_one_command(
    flags: str, resized: str, siglip2_at_95: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "siglip2", "--continue-from", str(siglip2_at_95), "--out", str(tmp_path / "run")]
    assert cli.main([*words, *flags.split()]) == 0
    said = capsys.readouterr().out
    names = [f"{tower}.tower.embeddings.{resized}_embedding.weight" for tower in ("model.vision", "teacher.copy")]
    assert f"resized: {', '.join(names)}\n" in said, (
        "the tower and the teacher; the projection heads go on as they were"
    )
    (row,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert row["step"] == 19
    terms = ("sigmoid", "caption", "local_to_global", "masked_patches")
    assert all(np.isfinite(row[f"loss/{term}"]) for term in terms)
    # The optimizer knew the heads: their first step here is their fourth since self-distillation began at 80 %.
    moments = load_file(tmp_path / "run/checkpoints/step-00000020/optimizer.safetensors")
    steps = {name: float(value) for name, value in moments.items() if name.endswith("prototypes/step")}
    assert len(steps) == 2 and set(steps.values()) == {4.0}


@pytest.fixture(scope="module")
def after(before: Path, recipes: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NaFlex, continued from the run, from Python."""
    out = tmp_path_factory.mktemp("after") / "run"
    go_on(before, recipes, out)
    return out


def go_on(before: Path, recipes: Callable[[str], str], out: Path, **changes: Any) -> None:
    given = {name: value for name, value in inherited(str(before)).items() if name != "logit_bias"}
    given = {name: value for name, value in given.items() if name in inspect.signature(train).parameters}
    train(recipes("naflex"), out=out, **given | {"continue_from": str(before)} | changes)


@torch.no_grad()
def test_naflex_leaves_a_plain_transformers_folder(after: Path) -> None:
    theirs, processor = (auto.from_pretrained(after / "model") for auto in (AutoModel, AutoProcessor))
    assert (type(theirs).__name__, type(processor).__name__) == ("Siglip2Model", "Siglip2Processor")
    ours = Model.from_pretrained(after / "model").eval()
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 90, 3), dtype=np.uint8)
    pictures = [Image.fromarray(noise[0]), Image.fromarray(noise[1].swapaxes(0, 1)), Image.fromarray(noise[2, :, :40])]
    inputs = processor(
        text=["a red square", "blue"],
        images=pictures,
        padding="max_length",
        max_length=64,
        truncation=True,
        patch_size=8,
        max_num_patches=16,
        return_tensors="pt",
    )
    ids = [read_pipeline(RunFolder(after).start).fixed(text) for text in ("a red square", "blue")]
    assert torch.equal(inputs["input_ids"], torch.from_numpy(np.stack(ids)))
    assert len(read_pipeline(RunFolder(after).start)) == ours.vocabulary
    output = theirs(**inputs)
    image = Patches(inputs["pixel_values"], inputs["spatial_shapes"], inputs["pixel_attention_mask"].bool())
    assert all(rows * columns <= 16 for rows, columns in image.shapes.tolist())
    assert image.shapes[0].tolist() == image.shapes[1].flip(0).tolist() and image.shapes[2].tolist() == [4, 4]
    mine = F.normalize(ours.vision(image).pooled, dim=-1)
    assert ours.text is not None
    texts = F.normalize(ours.text(inputs["input_ids"]).pooled, dim=-1)
    assert (output.image_embeds - mine).abs().max() < 1e-5
    assert (output.text_embeds - texts).abs().max() < 1e-5
    assert (mine[0] - mine[1]).abs().max() > 1e-3, "the images differ, so this compared something"
    assert "patch_size=8, max_num_patches=16" in (after / "model" / "README.md").read_text()


def test_a_continued_run_that_is_cut_short_resumes_bit_for_bit(
    before: Path, after: Path, recipes: Callable[[str], str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(after, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000028")
    go_on(before, recipes, copy, resume=True)
    ends = [load_file(out / "checkpoints/step-00000028/learner.safetensors") for out in (after, copy)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("naflex --continue-from nowhere", "--continue-from nowhere is not a run"),
        ("naflex --continue-from cut", "has checkpoints at 95.0%, 100.0%: train it with --keep 0.9"),
        ("naflex --continue-from cut/checkpoints/step-00000020", "is at the end of training"),
        ("naflex --continue-from cut/checkpoints/step-00000001", "does not say how far it is"),
        ("naflex --continue-from cut/checkpoints/step-00000019 --depth 2", "has no model.decoder.blocks.1"),
        ("naflex --continue-from cut/checkpoints/step-00000019 --length 32", "no rule fits"),
        (
            "naflex --continue-from cut --batch-size 3",
            "--batch-size 3 is not divisible by 1 ranks x --accumulate 1 x 2",
        ),
        ("small --keep 1.5 --data scenes", "--keep 1.5 is out of range; give a number of more than 0 and less than 1"),
    ],
)
def test_what_can_not_be_continued_is_one_sentence(
    words: str,
    part: str,
    before: Path,
    recipes: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(before, "cut")
    shutil.rmtree("cut/checkpoints/step-00000018")
    name, *rest = words.split()
    assert cli.main(["train", recipes(name), *rest, "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("opensiglip: ") and said.count("\n") == 1 and part in said


@pytest.mark.parametrize("flag", ["--continue-from", "--config"])
@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("keywords", "tasks", "{file}:mine:2,cap"), ("train", "data", ["scenes", "python:{file}:rows?text=a"])],
)
def test_a_run_names_no_file_to_run_unless_it_is_trusted(
    flag: str,
    part: str,
    key: str,
    value: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run may come from anyone: its config.json names the file, and the command names the run alone."""
    monkeypatch.chdir(tmp_path)
    Path("theirs.py").write_text("from pathlib import Path; Path('ran').touch()\n")
    record: dict[str, Any] = {"recipe": "tasks", "keywords": {}, "train": {"data": ["scenes"], "trust": True}}
    record[part][key] = json.loads(json.dumps(value).replace("{file}", "theirs.py"))
    Path("run").mkdir()
    Path("run/config.json").write_text(json.dumps(record))
    words = ["train", "tasks", flag, "run", "--out", "out", "--size", "tiny", "--steps", "1"]  # should a refusal fail
    Path("out/model").mkdir(parents=True)
    for ended in ("out", "out/model"):
        Path(ended, "config.json").write_text("{}")
    assert cli.main(words) == 2 and not Path("ran").exists()
    said = capsys.readouterr().err
    assert f"run's --{key} is " in said and said.rstrip().endswith(f"give --trust, or give --{key} yourself.")
    own = {"tasks": "cap", "data": "scenes"}[key]
    assert cli.main([*words, f"--{key}", own]) == 2 and not Path("ran").exists()
    said = capsys.readouterr().err
    assert "that run has checkpoints at nowhere" in said or "--out out already holds a run" in said
    assert cli.main([*words, "--trust"]) == 2 and Path("ran").exists()


def test_only_files_named_py_are_run(tmp_path: Path) -> None:
    """What a run names is looked for by that suffix: a link, or a folder's slash, must not hide it."""
    (tmp_path / "theirs.py").write_text("x = 1\n")
    (tmp_path / "link.txt").symlink_to("theirs.py")
    for name in ("link.txt", "theirs.py/"):
        with pytest.raises(UserError, match="is not named FILE.py"):
            user_file.check("data", f"{tmp_path}/{name}")
