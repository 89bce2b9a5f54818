"""Recipes with an EMA teacher over image towers of other makes: masked patches, local crops, heads, resumption."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import collate, draw
from forkserver import start_ranks
from safetensors.torch import load_file
from test_align import SHAPE, photo, towers
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTMAEConfig,
    ViTMAEModel,
)

import opensiglip
from opensiglip import UserError
from opensiglip.checkpoints.export import export
from opensiglip.data.fields.field import Visit
from opensiglip.data.sources.registry import open_source
from opensiglip.models.pretrained_towers import PretrainedVision
from opensiglip.models.towers import Vision
from opensiglip.objectives.base import Encoded
from opensiglip.objectives.distillation import LocalToGlobal
from opensiglip.recipes import silc
from opensiglip.training.assemble import build_learner
from opensiglip.training.dry_run import dry_run
from opensiglip.training.learner import Learner
from opensiglip.training.resolve import resolve
from opensiglip.training.run import train
from opensiglip.training.start import new_pipeline
from opensiglip.types import Batch

__all__ = ["towers"]  # the fixture
SIDES: dict[str, Any] = {"image_size": 28, "patch_size": 14} | SHAPE
MASKED = torch.tensor([[0, 1], [1, 3]])


def over(tower: Any) -> PretrainedVision:
    return PretrainedVision(tower, mean=(0.5,) * 3, std=(0.5,) * 3).eval()


def random_(tower: Any) -> Any:
    """At 1 and 0 norms would hide what is read from where."""
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return tower.eval()


def pixels(side: int = 28, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_masked_patches_are_those_of_dinov2s_own_mask(towers: Path) -> None:
    """Its argument bool_masked_pos puts its own mask token in the place of patches."""
    tower = Dinov2Model.from_pretrained(towers / "dinov2").eval()
    token, where = tower.embeddings.mask_token.detach(), torch.zeros(2, 4, dtype=torch.bool).scatter(1, MASKED, True)
    with torch.no_grad():
        theirs = tower(pixel_values=pixels(), bool_masked_pos=where).last_hidden_state[:, 1:]
        plain = over(tower)(pixels())
        found = over(tower)(pixels(), MASKED, token[0])
        after = over(tower)(pixels())
    torch.testing.assert_close(found.tokens, theirs, rtol=0, atol=1e-5)
    assert (found.tokens - plain.tokens).abs().max() > 0.1, "a test that can fail"
    assert torch.equal(after.tokens, plain.tokens), "the next pass sees the whole image"


def test_masked_patches_are_those_of_our_own_tower_of_siglip() -> None:
    torch.manual_seed(0)
    tower = random_(SiglipVisionModel(SiglipVisionConfig(**SIDES, intermediate_size=64, vision_use_head=False)))
    token = torch.randn(32)
    with torch.no_grad():
        ours, theirs = Vision(tower)(pixels(), MASKED, token), over(tower)(pixels(), MASKED, token)
    torch.testing.assert_close(theirs.tokens, ours.tokens, rtol=0, atol=1e-5)


TOWERS = {
    "DINOv3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIDES, intermediate_size=64, num_register_tokens=2)),
    "DeiT": lambda: DeiTModel(DeiTConfig(**SIDES, intermediate_size=64)),
    "CLIP": lambda: CLIPVisionModel(CLIPVisionConfig(**SIDES, intermediate_size=64)),
}


@pytest.mark.parametrize("name", ["dinov2", "registers", "vit", *TOWERS])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_lies_under_the_mask_is_not_seen(towers: Path, name: str, precision: torch.dtype) -> None:
    """Of each kind of tower, at the size that it was made for and another, also in autocast: rows first, from 0."""
    torch.manual_seed(0)
    vision = over(random_(TOWERS[name]() if name in TOWERS else AutoModel.from_pretrained(towers / name)))
    for side, patch in ((28, 3), (56, 6)):
        row, column = divmod(patch, side // 14)
        images = pixels(side, 1)
        other = images.clone()
        other[:, :, 14 * row : 14 * (row + 1), 14 * column : 14 * (column + 1)] = 0.5
        token = torch.randn(32, requires_grad=True)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            first, second = (vision(x, torch.tensor([[patch]]), token).tokens for x in (images, other))
            seen, elsewhere = vision(other).tokens, vision(images, torch.tensor([[patch - 1]]), token).tokens
        assert torch.equal(first, second) and first.shape == (1, (side // 14) ** 2, 32)
        assert not torch.equal(first, seen) and not torch.equal(first, elsewhere)
        first.float().square().sum().backward()
        assert token.grad is not None and token.grad.abs().sum() > 0


def arguments(towers: Path, folder: str, out: Path, **more: Any) -> dict[str, Any]:
    """Images of 56 pixels over a tower made for 28, so local crops have 28."""
    common = {"data": folder, "out": out, "steps": 4, "batch_size": 8, "lr": 1e-3, "precision": "fp32", "workers": 0}
    common |= {"memory_check": False, "held_out": 0, "log_every": 1, "keep_last": 9, "save_every": 1}
    start = {"vision": str(towers / "dinov2"), "text": str(towers / "bert-digits"), "freeze": "text", "tower_lr": 0.1}
    shape = {"size": "tiny", "resolution": 56, "length": 40, "prototypes": 16, "logit_bias": "auto"}
    return common | start | shape | more


DECODER = {"decoder_depth": 1, "decoder_width": 32, "image_positions": True, "regions": 0, "distill_start": 0.0}


def siglip2(towers: Path, folder: str, out: Path, **more: Any) -> dict[str, Any]:
    return train("siglip2", **arguments(towers, folder, out, **DECODER | more))


def steps(out: Path) -> list[dict[str, torch.Tensor]]:
    """What each checkpoint holds."""
    return [load_file(path / "learner.safetensors") for path in sorted((out / "checkpoints").iterdir())]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if "loss" in name} for row in rows(out)]


@pytest.mark.parametrize("more", [{}, {"lora": 2}], ids=["whole", "LoRA"])
def test_the_teacher_follows_the_tower_by_its_momentum(
    towers: Path, folder: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    """T <- m T + (1 - m) S, by hand from the checkpoints; with LoRA of its thin matrices."""
    siglip2(towers, folder, tmp_path / "run", momentum=0.75, **more)
    saved = steps(tmp_path / "run")
    averages = [name for name in saved[0] if name.startswith("teacher.copy.")]
    moved = set()
    for name in averages:
        student = name.replace("teacher.copy.", "model.vision.")
        average = saved[0][name]
        for one in saved[1:]:
            average = 0.75 * average + 0.25 * one[student]
            torch.testing.assert_close(one[name], average, rtol=1e-5, atol=1e-7)
        if not torch.equal(saved[-1][name], saved[0][name]):
            moved.add(name.removeprefix("teacher.copy."))
    towers_own = {name for name in moved if name.startswith("tower.")}
    assert towers_own and any(name.startswith("head.") for name in moved)
    assert all("lora_" in name for name in towers_own) == bool(more)


@pytest.mark.parametrize(
    "more", [{}, {"lora": 2, "precision": "bf16"}, {"heads_alone": True}], ids=["whole", "LoRA", "heads alone"]
)
def test_a_run_that_stops_within_a_stage_goes_on_bit_for_bit(
    towers: Path, folder: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    """Stopped in the first stage and in the last, in which both terms begin; the teacher begins as the tower."""
    given = {"steps": 6, "distill_start": 0.5, "head_ema": 0.5} | more
    siglip2(towers, folder, tmp_path / "run", **given)
    straight, weights = losses(tmp_path / "run"), steps(tmp_path / "run")[-1]
    assert ["loss/local_to_global" in row for row in straight] == [False] * 3 + [True] * 3
    for stopped in (2, 4):
        for place in sorted((tmp_path / "run" / "checkpoints").iterdir())[stopped:]:
            shutil.rmtree(place)
        siglip2(towers, folder, tmp_path / "run", **given, resume=True)
        assert losses(tmp_path / "run") == straight
        again = steps(tmp_path / "run")[-1]
        assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def work(rank: int, meeting: str, given: dict[str, Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    train("siglip2", **given)
    os._exit(0)  # gloo's threads may wait for ever, at the end, for a rank that has gone


def test_two_ranks_and_two_parts_equal_one(towers: Path, folder: str, tmp_path: Path) -> None:
    """Over both stages; also the weights, of which Adam would hide a scale, by their momentum-averaged teacher."""
    given = {"distill_start": 0.5, "lora": 2}
    siglip2(towers, folder, tmp_path / "one", **given)
    siglip2(towers, folder, tmp_path / "parts", **given, accumulate=2)
    ranks = arguments(towers, folder, tmp_path / "two", **DECODER | given)
    start_ranks(work, (str(tmp_path / "meeting"), ranks), 2)
    names = ("loss", "loss/local_to_global", "loss/masked_patches", "loss/sigmoid", "grad_norm")
    wanted = [[row.get(name, 0.0) for name in names] for row in rows(tmp_path / "one")]
    assert all(wanted[-1]), "each is there at the end"
    for name in ("parts", "two"):
        found = [[row.get(one, 0.0) for one in names] for row in rows(tmp_path / name)]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_run_of_silc_standardises_heads_by_its_views_and_is_exported(
    towers: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(towers, folder, tmp_path / "run", lora=2, steps=2)
    train("silc", **given)
    said = capsys.readouterr().out
    assert "heads       read 24 examples" in said and "0 known" not in said, "augmented views are not cached"
    first = steps(tmp_path / "run")[0]
    assert (first["model.vision.head.out.0.weight"] - 1).abs().min() > 0.01, "the norms do not begin at 1"
    export(str(tmp_path / "run"), out=tmp_path / "out")
    of_run, exported = (opensiglip.load(tmp_path / place) for place in ("run", "out"))
    np.testing.assert_allclose(exported.embed_images([photo(1)]), of_run.embed_images([photo(1)]), rtol=0, atol=1e-6)
    tower = AutoModel.from_pretrained(tmp_path / "run" / "model" / "vision")
    assert not any("lora" in name for name in tower.state_dict())


def built(towers: Path, folder: str, out: Path, **more: Any) -> tuple[Learner, Batch]:
    """A learner as a run begins with it, and a batch of eight."""
    job = resolve("siglip2", arguments(towers, folder, out, **DECODER | more))
    source = open_source(folder, pixels=56)
    pipeline = new_pipeline(None, job.recipe, [source], None, 300)
    learner, _ = build_learner(job, pipeline)
    examples = [source.example(index) for index in range(8)]
    visits = [Visit(example, example.image, example.regions, example.captions[0]) for example in examples]
    return learner, collate(job.recipe, draw(job.recipe, visits, pipeline), pipeline)


@pytest.mark.parametrize("more", [{}, {"lora": 2}], ids=["whole", "LoRA"])
def test_each_term_reaches_the_tower_and_its_own_head(
    towers: Path, folder: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    learner, batch = built(towers, folder, tmp_path / "run", **more)
    for name in ("local_to_global", "masked_patches"):
        learner.zero_grad()
        for module in learner.modules():  # thin matrices begin at 0 and hide one another's gradient
            if hasattr(module, "lora_B"):
                torch.nn.init.normal_(module.lora_B["default"].weight)
        term = learner.objectives[name]
        term(Encoded(learner.model, batch, learner.teacher)).backward()
        trained = [x for part, x in learner.model.vision.tower.named_parameters() if "lora_" in part or not more]
        read = [x for x in trained if x.requires_grad]
        touched = [x for x in read if x.grad is not None and x.grad.abs().sum() > 0]
        assert len(touched) > 0.9 * len(read) > 0
        assert all(x.grad is not None for x in term.head.parameters())
        head = [x.grad is not None for x in learner.model.vision.head.parameters()]
        assert all(head) if name == "local_to_global" else not any(head), "the pooled image, or patches"
        assert all(x.grad is None for x in learner.teacher.parameters())
    assert learner.objectives["masked_patches"].token.grad.abs().sum() > 0


def test_heads_are_as_wide_as_what_they_read(towers: Path, folder: str, tmp_path: Path) -> None:
    """384: the space that images share with texts; 32: the tower's patches. The recipe's own tower has 128."""
    learner, _ = built(towers, folder, tmp_path / "run")
    terms = [learner.objectives[name] for name in ("local_to_global", "masked_patches")]
    assert [term.head.layers[0].in_features for term in terms] == [384, 32]
    assert [term.slow_head.copy.layers[0].in_features for term in terms] == [384, 32]
    assert terms[1].token.shape == (32,)


def test_heads_of_our_own_towers_are_those_that_the_recipe_made() -> None:
    recipe = silc(size="tiny", prototypes=16)
    [term] = [term for term in recipe.objectives if isinstance(term, LocalToGlobal)]
    head, state = term.head, torch.get_rng_state()
    term.build(None, recipe.architecture)  # type: ignore[arg-type]
    assert term.head is head and torch.equal(torch.get_rng_state(), state), "nothing is drawn for them"


def test_a_run_of_ours_goes_on_from_an_aligned_pair(towers: Path, folder: str, tmp_path: Path) -> None:
    given = arguments(towers, folder, tmp_path / "pair", steps=1, embed=16)
    given = {name: value for name, value in given.items() if name not in ("size", "prototypes", "tower_lr")}
    train("align", **given)
    start = {"init": str(tmp_path / "pair"), "vision": None, "text": None, "size": "32x2x128x4/14", "steps": 2}
    given = arguments(towers, folder, tmp_path / "run", **start)
    train("silc", **{name: value for name, value in given.items() if value is not None})
    saved = steps(tmp_path / "run")[-1]
    assert saved["objectives.local_to_global.head.layers.0.weight"].shape[1] == 16


def test_the_dry_run_counts_the_teacher(towers: Path, folder: str, tmp_path: Path) -> None:
    given = arguments(
        towers, folder, tmp_path / "run", **DECODER | {"distill_start": 0.5, "lora": 2, "memory_check": True}
    )
    said = dry_run("siglip2", **given)
    assert not (tmp_path / "run").exists() and re.search(r"memory      [\d.]+ GiB a rank by estimate", said)
    assert re.search(r"parameters  vision 0.74 M, .*EMA teacher 1.54 M", said), "the tower and its heads, and theirs"
    assert "stage       steps 2 to 4: sigmoid, caption, local_to_global, masked_patches;" in said


@pytest.mark.parametrize(
    ("recipe", "more", "sentence"),
    [
        ("tips", {}, "--vision: second_sigmoid pools images a second time"),
        ("tips2", {}, "--vision: second_sigmoid pools images a second time"),
        ("silc", {"vision": "mae"}, r"--vision .*mae can't read masked images of 28 pixels.*4 patches make 1 tokens"),
        ("silc", {"freeze": "both"}, "--freeze both: local_to_global would teach"),
        (
            "siglip2",
            {"freeze": "vision"},
            "--freeze vision: local_to_global and masked_patches would teach the image tower",
        ),
    ],
)
def test_what_can_not_be_taught_is_one_sentence(
    towers: Path, folder: str, tmp_path: Path, recipe: str, more: dict[str, Any], sentence: str
) -> None:
    if more.get("vision") == "mae":  # which reads a quarter of the patches
        ViTMAEModel(ViTMAEConfig(**SIDES, intermediate_size=64)).save_pretrained(tmp_path / "mae")
        more = {"vision": str(tmp_path / "mae")}
    with pytest.raises(UserError, match=sentence):
        train(recipe, **arguments(towers, folder, tmp_path / "run", **more))
    assert not (tmp_path / "run").exists(), "it is refused before anything is written"
