"""Active curation: what is chosen of a super-batch, and that ranks, parts and a resume change nothing of it."""

import json
import math
import os
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import LENGTH, SIDE, Small
from forkserver import start_ranks
from PIL import Image
from safetensors.torch import load_file
from test_resume import assert_same_end, cut_short
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from opensiglip.data.example import Caption, Example, Source
from opensiglip.data.fields.curation import ROWS, SCORER, TEACHER, CachedRows, Origins, ReferenceImages, ReferenceTexts
from opensiglip.data.fields.field import Field
from opensiglip.data.fields.frame import Frame
from opensiglip.data.fields.naflex import NaFlex
from opensiglip.data.loader import DataPlan, StepBatch, Steps
from opensiglip.data.sources.registry import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.models.sizes import PairShape
from opensiglip.objectives.base import unit
from opensiglip.recipes import RECIPES
from opensiglip.reports.selected_examples import SelectedExample
from opensiglip.training.accumulate import accumulate
from opensiglip.training.assemble import Opened
from opensiglip.training.config import TrainConfig
from opensiglip.training.curation import reference_cache
from opensiglip.training.curation.build import check_recipe, check_resolution, distilled, references
from opensiglip.training.curation.build import curator as build_curator
from opensiglip.training.curation.curator import Curator
from opensiglip.training.curation.extremes import extremes
from opensiglip.training.curation.reference import BLOCK, Reference, open_reference
from opensiglip.training.curation.reference_cache import towers
from opensiglip.training.curation.selection import (
    SIGNS,
    Pairs,
    Scores,
    blocked_sampling,
    chunk_sizes,
    noise,
)
from opensiglip.training.curation.tally import Counted, Tally
from opensiglip.training.feature_cache import Frozen
from opensiglip.training.learner import Learner, denominators
from opensiglip.training.log import read_lines
from opensiglip.training.planning import check
from opensiglip.training.resolve import Job
from opensiglip.training.run import train
from opensiglip.types import Batch

# What is chosen


def pairs(seed: int, size: int, width: int = 8) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(size, width, generator=generator, dtype=torch.float64), dim=-1)
        for _ in range(2)
    )
    return Pairs(images, texts, torch.tensor([4.0 + seed]).double(), torch.tensor([-1.0 - seed]).double())


def loss(of: Pairs, i: int, j: int) -> float:
    """-log sigma(z (t x_i.y_j + b)), in plain numbers."""
    logit = float(of.scale) * float(of.images[i] @ of.texts[j]) + float(of.bias)
    return -math.log(1 / (1 + math.exp(-logit if i == j else logit)))


def naive(scores: np.ndarray, valid: Tensor, count: int, draws: Tensor) -> list[int]:
    """JEST's Algorithm 1 on the whole matrix of scores, the draws by Gumbel numbers, in the order drawn."""
    size, drawn = len(scores), []
    for gumbel, wanted in zip(draws.numpy(), chunk_sizes(count, len(draws)), strict=True):
        logits = [
            scores[i, i] + sum(scores[i, k] + scores[k, i] for k in drawn) if valid[i] else -1e9 for i in range(size)
        ]
        left = [i for i in range(size) if i not in drawn]
        drawn += sorted(left, key=lambda i: -(logits[i] + gumbel[i]))[:wanted]
    return drawn


def matrix(scores: np.ndarray) -> Any:
    """What `blocked_sampling` asks of scores."""
    whole = torch.from_numpy(scores)
    return whole.diagonal(), lambda chunk: whole[:, chunk].sum(1) + whole[chunk].sum(0)


def test_a_hand_worked_choice() -> None:
    """Four examples, two of them drawn one by one, without noise.

    The diagonal is 3, 2, 1, 0, so 0 is first. Given it: 1 has 2 - 4 - 1 = -3, 2 has 1 + 1 + 1 = 3, 3 has 0 + 2 + 0.5 =
    2.5. So 2 follows, though alone 1 scores higher.
    """
    scores = np.array([[3.0, -1.0, 1.0, 0.5], [-4.0, 2.0, 9.0, 9.0], [1.0, 9.0, 1.0, 9.0], [2.0, 9.0, 9.0, 0.0]])
    own, others = matrix(scores)
    silent, every = torch.zeros(2, 4), torch.ones(4, dtype=torch.bool)
    assert blocked_sampling(own, others, every, 2, silent).tolist() == [0, 2]
    assert blocked_sampling(own, others, every, 2, silent[:1]).tolist() == [0, 1]  # in one chunk: each by itself
    without_text = torch.tensor([True, True, False, True])
    assert blocked_sampling(own, others, without_text, 2, silent).tolist() == [0, 3]
    assert blocked_sampling(own, others, without_text, 4, torch.zeros(4, 4)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", SIGNS)
@pytest.mark.parametrize(("size", "count", "chunks"), [(16, 8, 4), (15, 7, 3), (12, 12, 5), (9, 2, 16)])
def test_what_is_chosen_is_what_the_equations_say(method: str, size: int, count: int, chunks: int) -> None:
    models = [pairs(seed, size) for seed in (0, 1)]
    valid = torch.arange(size) % 5 != 3
    group = torch.arange(size) // 2
    signs = SIGNS[method]
    scores = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            counts = i == j or (valid[i] and valid[j] and group[i] != group[j])
            scores[i, j] = sum(sign * loss(of, i, j) for sign, of in zip(signs, models, strict=True)) if counts else 0.0
    found = Scores([(sign, of) for sign, of in zip(signs, models, strict=True) if sign], valid, group)
    for step in range(5):
        draws = noise(3, step, min(chunks, count), size)
        chosen = blocked_sampling(found.own(), found.others, valid, count, draws)
        assert chosen.tolist() == sorted(naive(scores, valid, count, draws))
        assert len(set(chosen.tolist())) == count


def test_gumbel_numbers_draw_by_the_softmax_of_the_scores() -> None:
    own = torch.tensor([0.0, 1.0, 2.0]).double()
    every = torch.ones(3, dtype=torch.bool)
    drawn = Counter(
        int(blocked_sampling(own, lambda chunk: torch.zeros(3), every, 1, noise(0, step, 1, 3))) for step in range(4000)
    )
    shares = [drawn[place] / 4000 for place in range(3)]
    assert shares == pytest.approx(own.softmax(0).tolist(), abs=0.02)


def test_sharp_scores_choose_the_best_and_the_noise_is_the_seed_s_and_the_step_s() -> None:
    own = torch.randn(32, generator=torch.Generator().manual_seed(0)).double() * 1e4
    every = torch.ones(32, dtype=torch.bool)
    chosen = blocked_sampling(own, lambda chunk: torch.zeros(32), every, 8, noise(0, 0, 4, 32))
    assert chosen.tolist() == sorted(own.topk(8).indices.tolist())
    assert torch.equal(noise(1, 2, 3, 4), noise(1, 2, 3, 4))
    assert not torch.equal(noise(1, 2, 3, 4), noise(1, 3, 3, 4)) and not torch.equal(
        noise(1, 2, 3, 4), noise(2, 2, 3, 4)
    )


# Ranks and parts

BATCH, SUPER, EXACT = 8, 16, 1e-12
ROWS_OF = 60  # of the case's source
LOW = SIDE // 2  # pixels of a side at which a learner may score


class Case:
    """A learner, a reference and a super-batch of scenes, in pieces."""

    def __init__(self, small: Small, pipeline: TextPipeline, source: Source) -> None:
        self.recipe, self.pipeline = small("siglip", logit_bias="auto"), pipeline
        self.origins = Origins([source.name], ["en"])
        self.beside = [self.origins, ReferenceTexts(pipeline.with_length(24), "reference")]
        fields = [*self.recipe.fields, *self.beside]
        self.plans = {
            (ranks, rank, parts): DataPlan(
                sources=[source],
                frame=self.recipe.frame,
                fields=fields,
                pipeline=pipeline,
                batch_size=SUPER,
                seed=0,
                rank=rank,
                ranks=ranks,
                parts=parts,
            )
            for ranks in (1, 2)
            for rank in range(ranks)
            for parts in (1, 2)
        }
        torch.manual_seed(1)
        networks = replace(self.recipe.architecture, length=24, pad_id=pipeline.policy.pad_id)
        model = Model.new(networks, len(pipeline)).eval()
        longer, frame, both = pipeline.with_length(24), self.recipe.frame, (SCORER, TEACHER)
        self.reference = Reference(model, longer, frame, self.beside[1:], nullcontext, both)
        # ACED: a second model teaches, and reads its own fields.
        own: list[Field] = [ReferenceTexts(longer, "teacher"), ReferenceImages(Frame(SIDE), "teacher")]
        model = Model.new(networks, len(pipeline)).eval()
        self.teacher = Reference(model, longer, frame, own, nullcontext, [TEACHER], "teacher")
        aced = TrainConfig(data=("scenes",), out=Path("x"), distil="softmax", reference="x")
        self.aced = distilled(aced, self.recipe)

    def curator(self, resolution: int | None = None) -> Curator:
        fields, names = [self.origins], self.origins.names
        return Curator("learnability", BATCH, 4, 5, fields, names, nullcontext, Tally(ROWS_OF), resolution=resolution)

    def embedded(self, batch: StepBatch) -> list[Batch]:
        """A batch's parts with the rows by which the curator scores; nothing teaches."""
        scores = replace(self.reference, writes=(SCORER,))
        return [scores.embed(part, torch.device("cpu")) for part in batch.parts]

    def measured(self, ranks: int, rank: int, parts: int, kind: str = "plain") -> dict[str, Any]:
        """What is chosen, the log's numbers, and the gradient of it in float64.

        With the kind "aced" the learner scores at a lower resolution, and another model than the reference teaches.
        """
        torch.manual_seed(0)
        aced, cpu, plan = kind == "aced", torch.device("cpu"), self.plans[ranks, rank, parts]
        learner = Learner.new(self.aced if aced else self.recipe, self.pipeline)
        curator = self.curator(LOW if aced else None)
        batch = Steps(replace(plan, fields=[*plan.fields, *self.teacher.fields]) if aced else plan)[3]
        chosen, row = curator.choose(learner, self.embedded(batch), 3, cpu)
        if aced:
            chosen = [self.teacher.embed(part, cpu) for part in chosen]
        exact = [
            {n: v.double() / 127.5 - 1 if v.dtype == torch.uint8 else v for n, v in part.items()} for part in chosen
        ]
        exact = [{n: v.double() if v.is_floating_point() else v for n, v in part.items()} for part in exact]
        learner = learner.double()
        step = torch.nn.parallel.DistributedDataParallel(learner) if ranks > 1 else learner
        no_sync: Any = (lambda module: module.no_sync()) if ranks > 1 else (lambda module: nullcontext())
        losses, _ = accumulate(step, learner, exact, denominators(learner, exact), lambda x: x.backward(), no_sync)
        grads = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
        counts = curator.tally.tensors()
        found = {"chosen": chosen, "row": row, "grads": grads, "state": curator.state(), "counts": counts}
        return found | {"terms": sorted(losses)}


def work(rank: int, folder: str, case: Case) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    cases = [(parts, kind) for parts in (1, 2) for kind in ("plain", "aced")]
    torch.save({one: case.measured(2, rank, *one) for one in cases}, f"{folder}/rank{rank}")
    dist.barrier()
    os._exit(0)


@pytest.fixture(scope="module")
def case(small: Small, pipeline: TextPipeline) -> Case:
    return Case(
        small, pipeline, open_source(f"scenes:drawings=40,objects=3,exchanged=0.5,count={ROWS_OF}", pixels=SIDE)
    )


@pytest.fixture(scope="module")
def ranks(case: Case, tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[int, str], dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    start_ranks(work, (str(folder), case), 2)
    return [torch.load(folder / f"rank{rank}") for rank in range(2)]


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "aced"])
def test_two_ranks_and_two_parts_choose_and_learn_as_one(case: Case, ranks: list[Any], parts: int, kind: str) -> None:
    alone = case.measured(1, 0, 1, kind)
    whole = joined(alone["chosen"])
    rows = {"teacher_image", "teacher_text"} if kind == "aced" else set()
    assert ("distil" in alone["terms"]) == (kind == "aced")
    assert whole["image"].shape[1:] == (3, SIDE, SIDE), "it trains at full size"
    assert len(whole["text"]) == BATCH and set(whole) == {"image", "text", "has_text", "group"} | rows
    assert len(set(whole["group"].tolist())) == BATCH, "no example twice"
    seen = Steps(case.plans[1, 0, 1])[3].parts[0]
    assert set(whole["group"].tolist()) < set(seen["group"].tolist()) and len(seen["group"]) == SUPER
    for found in ([rank[parts, kind] for rank in ranks], [case.measured(1, 0, parts, kind)]):
        assert all(len(one["chosen"]) == parts for one in found)
        assert len({len(part["text"]) for one in found for part in one["chosen"]}) == 1
        together = joined([joined(one["chosen"]) for one in found])
        assert all(torch.equal(together[name], values) for name, values in whole.items())
        for one in found:
            assert one["row"] == pytest.approx(alone["row"], rel=1e-4) and one["state"] == alone["state"]
            torch.testing.assert_close(one["counts"], alone["counts"], rtol=1e-5, atol=1e-5)
            gaps = [float((one["grads"][name] - grad).abs().max()) for name, grad in alone["grads"].items()]
            assert max(gaps) < EXACT
    assert max(float(grad.abs().max()) for grad in alone["grads"].values()) > 0.1


def test_the_memory_estimate_has_the_reference_and_the_super_batch(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs(curator: Curator | None, *references: Reference) -> int:
        config = TrainConfig(data=("scenes",), out=Path("x"), batch_size=BATCH)
        job: Any = SimpleNamespace(config=config, recipe=case.recipe)
        plain = replace(plan, fields=case.recipe.fields)
        return int(check.memory_line(job, plain, torch.device("cpu"), "no", curator, references).partition(" ")[0])

    plan = case.plans[1, 0, 1]
    monkeypatch.setattr(check, "gib", str)
    read = sum(field.nbytes for field in Steps(plan)[0].parts[0].values())
    model, without = case.reference.model, needs(None)
    weights = sum(x.nbytes for x in [*model.parameters(), *model.buffers()])
    assert needs(case.curator(), case.reference) - without == pytest.approx(weights + read, rel=0.02)
    both = needs(case.curator(), case.reference, replace(case.reference, fields=[]))
    assert both - needs(case.curator(), case.reference) == pytest.approx(weights, rel=0.02), "a teacher beside it"
    texts = Steps(plan)[0].parts[0]["for_reference_text"].nbytes  # that no one reads without it
    assert needs(case.curator()) - without == pytest.approx(read - texts, rel=0.02)


def test_shares_are_of_all_that_was_seen_and_of_what_was_chosen(case: Case) -> None:
    found = case.measured(1, 0, 1)
    state, seen = found["state"], Steps(case.plans[1, 0, 1])[3].parts[0]
    exchanged = case.origins.names["writer"].index("exchanged")
    assert state["seen"]["writer/exchanged"] == int((seen["origin_writer"] == exchanged).sum()) > 0
    assert sum(n for name, n in state["chosen"].items() if name.startswith("writer/")) == BATCH
    assert found["row"]["curate/writer/exchanged"] == state["chosen"]["writer/exchanged"] / BATCH
    assert "curate/source/" + next(iter(case.origins.names["source"])) not in found["row"]  # it is alone


# Runs


@pytest.fixture(scope="module")
def go(folder: str) -> Any:
    def run(out: Path, recipe: str = "siglip2_acid", **changes: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "data": [folder],
            "steps": 4,
            "save_every": 2,
            "batch_size": 4,
            "lr": 1e-3,
            "workers": 0,
            "held_out": 0,
            "precision": "fp32",
            "memory_check": False,
            "vocabulary": 300,
            "size": "32x1x64x2/8",
            "resolution": SIDE,
            "length": LENGTH,
        }
        return train(recipe, out=out, **settings | changes)

    return run


@pytest.fixture(scope="module")
def reference(go: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SigLIP of another tokenizer and resolution than the learner's."""
    out = tmp_path_factory.mktemp("reference") / "run"
    go(out, "siglip", resolution=16, length=16, vocabulary=280, steps=1)
    return str(out)


def test_a_curated_run_cut_short_goes_on_bit_for_bit_and_its_paper_s_flags_hold(
    go: Any, reference: str, tmp_path: Path
) -> None:
    summary = go(tmp_path / "straight", reference=reference, accumulate=2)
    cut_short(3, lambda: go(tmp_path / "cut", reference=reference, accumulate=2))
    go(tmp_path / "cut", reference=reference, accumulate=2, resume=True)
    assert_same_end(tmp_path / "cut", tmp_path / "straight", 4)
    rows = read_lines(tmp_path / "straight" / "metrics.jsonl")
    assert {"curate/score", "curate/score_chosen", "curate/score_p50", "curate/agreement"} <= rows[0].keys()
    trained = json.loads((tmp_path / "straight" / "config.json").read_text())["train"]
    assert (trained["weight_decay"], trained["curate"], trained["filter"]) == (0.0, "learnability", 0.5)
    assert summary["images_seen"] == 4 * 8 and summary["curated"]["writer"] == {"human": {"seen": 1.0, "chosen": 1.0}}
    state = json.loads((tmp_path / "straight" / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["curated"]["seen"]["language/en"] == 32 and state["curated"]["chosen"]["language/en"] == 16
    learned = load_file(tmp_path / "straight" / "model" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in learned.values())
    counts, again = (
        load_file(tmp_path / name / "checkpoints" / "step-00000004" / "tally.safetensors")
        for name in ("straight", "cut")
    )
    assert all(torch.equal(counts[name], again[name]) for name in counts)
    assert (int(counts["seen"].sum()), int(counts["selected"].sum())) == (32, 16)
    assert selected_section(tmp_path / "straight") == selected_section(tmp_path / "cut")


def test_the_start_up_line_counts_true_negatives_among_what_is_kept(
    go: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight of two images, of which four are kept: 4 of an image's 7 others show the other one, so 3 · 4/7 are kept."""
    for name in "ab":
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / f"{name}.png")
    lines = [json.dumps({"file_name": f"{name}.png", "caption": name, "split": "train"}) for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    go(tmp_path / "run", data=[str(tmp_path)], steps=1, curate="learner", filter=0.5)
    assert "batch       4 images a step, 1.714 negatives for each image on average" in capsys.readouterr().out


def test_a_larger_patch_leaves_out_three_quarters() -> None:
    assert RECIPES["siglip2_acid"](size="B/32").filter == 0.75
    assert RECIPES["siglip2_acid"](size="B/16").filter == 0.5


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"curate": "learnability"}, "--reference"),
        ({"curate": "learner", "reference": "x"}, "leave out --reference"),
        ({"reference": "x"}, "is for runs with --curate or --distil"),
        ({"filter": 0.5}, "--curate too"),
        ({"curate": "learner", "shard": True}, "--shard"),
        ({"curate": "learner", "filter": 1.0}, "--filter 1.0 is out of range"),
        ({"teacher": "x", "distil": "softmax", "reference": "y"}, "--teacher is distilled from while --reference"),
        ({"teacher": "x", "curate": "learnability", "reference": "y"}, "give --distil and --curate"),
        ({"teacher": "x", "curate": "learner", "distil": "softmax", "reference": "y"}, "or name it by --reference"),
        ({"score_resolution": 16}, "--score-resolution is for runs that score by the learner"),
        ({"curate": "easy-reference", "reference": "x", "score_precision": "bf16"}, "--score-precision is for runs"),
        ({"curate": "learner", "score_resolution": 16, "keep_tokens": 0.5}, "leave it out, or --keep-tokens"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        TrainConfig(data=("scenes",), out=Path("x"), **flags)


def test_a_filter_that_gives_no_whole_super_batch_is_refused() -> None:
    config = TrainConfig(data=("scenes",), out=Path("x"), curate="learner", filter=0.7, batch_size=32)
    with pytest.raises(UserError, match=r"106\.67, which is not a whole number of images"):
        config.super_batch  # noqa: B018
    assert replace(config, filter=0.8).super_batch == 160


def test_recipes_and_references_that_can_not_be_chosen_by_are_refused(go: Any, folder: str, tmp_path: Path) -> None:
    refused = {"clip": "sigmoid", "siglip2": "Captions", "cappa": "sigmoid", "silc": "crops", "tips": "crops"}
    for name, says in refused.items():
        with pytest.raises(UserError, match=says):
            check_recipe("learner", RECIPES[name](size="tiny"))
    for name in ("siglip", "siglip2_acid"):
        check_recipe("learner", RECIPES[name](size="tiny"))
    go(tmp_path / "clip", "clip", steps=1)
    with pytest.raises(UserError, match="softmax"):
        open_reference(str(tmp_path / "clip"))


def test_a_size_at_which_no_image_can_be_scored_is_refused(small: Small) -> None:
    recipe = small("siglip")
    check_resolution(SIDE, recipe)
    check_resolution(LOW, recipe)
    for pixels, says in ((12, "patch size 8 up to --resolution 32; try 8"), (64, "try 32"), (4, "try 8")):
        with pytest.raises(UserError, match=says):
            check_resolution(pixels, recipe)
    dino = replace(recipe.architecture, pair=PairShape(vision="dino", embed=64))
    timm = replace(recipe.architecture, encoder="vit_base_patch16_clip_224")
    naflex = replace(small("siglip2_naflex"), fields=recipe.fields)
    for other in (replace(recipe, architecture=dino), replace(recipe, architecture=timm), naflex):
        with pytest.raises(UserError, match="leave it out"):
            check_resolution(LOW, other)
    check_resolution(LOW, replace(recipe, architecture=replace(recipe.architecture, naflex=True)))


def test_scenes_exchange_the_captions_of_the_share_that_is_asked_for() -> None:
    plain, mixed, more = (
        open_source(f"scenes:drawings=24,objects=2,count=400{share}", pixels=16)
        for share in ("", ",exchanged=0.3", ",exchanged=0.6")
    )

    def writers(source: Source) -> list[str]:
        return [source.example(index).captions[0].source for index in range(400)]

    some, most = writers(mixed), writers(more)
    assert some.count("exchanged") / 400 == pytest.approx(0.3, abs=0.06)
    assert most.count("exchanged") / 400 == pytest.approx(0.6, abs=0.06)
    texts = [plain.example(index).captions[0].text for index in range(400)]
    for index, writer in enumerate(some):
        example = mixed.example(index, "en")
        assert torch.equal(example.image, plain.example(index).image)
        assert example.captions[0].text in texts
        assert writer == "exchanged" or example.captions[0].text == texts[index]
    assert sum(mixed.example(i).captions[0].text != texts[i] for i in range(400)) > 0.9 * some.count("exchanged")
    held_out = open_source("scenes:drawings=24,objects=2,exchanged=1", split="val", pixels=16)
    assert {held_out.example(index).captions[0].source for index in range(20)} == {"synthetic"}
    for wrong in ("1.5", "much", "nan"):
        with pytest.raises(UserError, match="number from 0 to 1"):
            open_source(f"scenes:exchanged={wrong}")


def test_what_the_reference_sees_is_the_visit_in_its_own_frame(scenes: Source, pipeline: TextPipeline) -> None:
    frame = Frame(SIDE, 0.5)
    steps = Steps(
        DataPlan(
            sources=[scenes],
            frame=frame,
            fields=[ReferenceImages(Frame(16), "reference"), Origins([scenes.name], ["en"])],
            pipeline=pipeline,
            batch_size=4,
            seed=0,
        )
    )
    batch = steps[0].parts[0]
    assert batch["for_reference_image"].shape == (4, 3, 16, 16)
    visit = steps.visit(0, Counter(), frame)
    expected = torch.nn.functional.interpolate(visit.image[None].float(), (16, 16), mode="area")[0]
    assert (batch["for_reference_image"][0].float() - expected).abs().mean() < 12  # the same crop, resized once
    assert batch["origin_source"].tolist() == [0] * 4 and batch["origin_language"].tolist() == [0] * 4


def test_learnability_is_the_learners_loss_less_the_references() -> None:
    assert SIGNS == {"learnability": (1.0, -1.0), "easy-reference": (0.0, -1.0), "learner": (1.0, 0.0)}


def test_scores_are_the_losses_of_the_models_as_they_serve(case: Case) -> None:
    torch.manual_seed(0)
    learner, modes = Learner.new(case.recipe, case.pipeline), []
    learner.model.vision.register_forward_hook(lambda module, *_: modes.append(module.training))
    found = Steps(case.plans[1, 0, 1])[3]
    batch = found.parts[0]
    chosen, row = case.curator().choose(learner, case.embedded(found), 3, torch.device("cpu"))
    assert modes == [False] and learner.training
    losses = []
    for model, text in ((learner.model, "text"), (case.reference.model, "for_reference_text")):
        with torch.no_grad():
            image, words = model.vision(batch["image"] / 127.5 - 1).pooled, model.text(batch[text]).pooled
            cosines = torch.nn.functional.cosine_similarity(image, words)
            losses.append(torch.nn.functional.softplus(-(model.logit_scale.exp() * cosines + model.logit_bias)))
    scores, valid = losses[0] - losses[1], batch["has_text"]
    taken = torch.isin(batch["group"], chosen[0]["group"])
    expected = {
        "curate/score": scores[valid].mean(),
        "curate/score_chosen": scores[taken].mean(),
        "curate/score_p10": scores[valid].quantile(0.1),
        "curate/score_p90": scores[valid].quantile(0.9),
        "curate/agreement": torch.corrcoef(torch.stack(losses)[:, valid])[0, 1],
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value), abs=1e-4), name


@pytest.mark.parametrize(("method", "seen"), [("learner", [False]), ("easy-reference", [])])
def test_a_learner_scores_as_it_serves_where_its_loss_is_asked_for(case: Case, method: str, seen: list[bool]) -> None:
    learner, modes, switched = Learner.new(case.recipe, case.pipeline), list[bool](), list[bool]()
    learner.model.vision.register_forward_hook(lambda module, *_: modes.append(module.training))
    train = learner.train
    learner.train = lambda mode=True: switched.append(mode) or train(mode)  # type: ignore[method-assign]
    curator, parts = replace(case.curator(), method=method), case.embedded(Steps(case.plans[1, 0, 1])[3])
    curator.choose(learner, parts, 3, torch.device("cpu"))
    assert modes == seen and learner.training and switched == [False, True] * len(seen)


def test_scores_at_a_lower_resolution_are_those_of_resized_images(case: Case) -> None:
    """By hand: images are resized one by one, and so is the table of positions; then the equations decide."""
    torch.manual_seed(0)
    learner, (batch,) = Learner.new(case.recipe, case.pipeline), case.embedded(Steps(case.plans[1, 0, 1])[3])
    chosen = case.curator(LOW).choose(learner, [batch], 3, torch.device("cpu"))[0][0]
    model = learner.model.eval()
    table = model.vision.tower.embeddings.position_embedding.weight
    with torch.no_grad():
        small = torch.stack([resize(image, [LOW, LOW], antialias=True) for image in batch["image"]]).float() / 127.5 - 1
        grid = table.T.unflatten(1, (1, SIDE // 8, SIDE // 8)).transpose(0, 1)
        grid = torch.nn.functional.interpolate(grid, (LOW // 8, LOW // 8), mode="bilinear", antialias=True)
        patches = model.vision.patches(small) + grid.flatten(2).mT
        states = model.vision.tower.encoder(inputs_embeds=patches).last_hidden_state
        image = unit(model.vision.pool(model.vision.tower.post_layernorm(states)))
        text = unit(model.text(batch["text"]).pooled)
        reference = Pairs(batch["scorer_image"], batch["scorer_text"], torch.ones(1), torch.zeros(1))
        by_hand = [(1.0, Pairs(image, text, model.logit_scale.exp(), model.logit_bias)), (-1.0, reference)]
        scores = Scores(by_hand, batch["has_text"], batch["group"])
        draws = noise(5, 3, 4, SUPER)
        places = blocked_sampling(scores.own(), scores.others, scores.valid, BATCH, draws)
        own = case.curator(LOW).scores(model, [batch]).own()
    assert torch.equal(chosen["group"], batch["group"][places])
    torch.testing.assert_close(own, scores.own(), rtol=0, atol=1e-6)
    full = case.curator().scores(model, [batch]).own()
    assert (own - full).abs().max() > 1e-3
    for same in (SIDE, 2 * SIDE):  # where images grow, they may yet be smaller than that
        assert torch.equal(case.curator(same).scores(model, [batch]).own(), full)


def test_scores_have_a_precision_of_their_own_and_the_reference_has_the_runs(small: Small, reference: str) -> None:
    def dtypes(**flags: Any) -> list[torch.dtype]:
        config = TrainConfig(
            data=("scenes",),
            out=Path("x"),
            curate="learnability",
            reference=reference,
            filter=0.5,
            held_out=0,
            batch_size=8,
            steps=1,
            **flags,
        )
        opened, found = Opened.of(Job(config, small("siglip"), {})), list[torch.dtype]()
        assert opened.curating is not None
        for autocast in (opened.curating.autocast, opened.references[0].autocast):
            with autocast():
                found.append(torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype)
        return found

    whole, half = torch.float32, torch.bfloat16
    assert dtypes(precision="fp32") == [whole, whole] and dtypes(precision="bf16") == [half, half]
    assert dtypes(precision="bf16", score_precision="fp32") == [whole, half]
    assert dtypes(precision="fp32", score_precision="bf16") == [half, whole]


def test_the_curator_has_the_runs_flags_and_its_frames_interpolation(small: Small, scenes: Source) -> None:
    config = TrainConfig(
        data=("scenes",), out=Path("x"), curate="learner", chunks=3, seed=7, batch_size=8, score_resolution=LOW
    )
    recipe = replace(small("siglip"), frame=Frame(SIDE, interpolation="bicubic"))
    made = build_curator(config, recipe, [scenes], nullcontext)
    assert made is not None and (made.chunks, made.seed, made.keep) == (3, 7, 8)
    assert (made.resolution, made.interpolation) == (LOW, "bicubic")


def test_the_references_rows_are_its_logits_and_the_same_in_any_batch(case: Case) -> None:
    batch = Steps(case.plans[1, 0, 1])[3].parts[0]
    rows = case.reference.embed(batch, torch.device("cpu"))
    assert not any(name.startswith("for_") for name in rows) and torch.equal(rows["image"], batch["image"])
    model = case.reference.model
    with torch.no_grad():
        image, text = model.vision(batch["image"] / 127.5 - 1).pooled, model.text(batch["for_reference_text"]).pooled
        cosines = torch.nn.functional.cosine_similarity(image[:, None], text, dim=-1)
        logits = model.logit_scale.exp() * cosines + model.logit_bias
    torch.testing.assert_close(rows["teacher_image"] @ rows["teacher_text"].T, logits, rtol=1e-4, atol=1e-4)
    alone = case.reference.embed({name: values[3:4] for name, values in batch.items()}, torch.device("cpu"))
    many = {name: torch.cat([values] * 6)[: BLOCK + 20] for name, values in batch.items()}
    several = case.reference.embed(many, torch.device("cpu"))
    for name in ("teacher_image", "teacher_text"):
        assert torch.equal(alone[name][0], rows[name][3]) and len(several[name]) == BLOCK + 20
        assert torch.equal(several[name][3::SUPER], rows[name][3].expand(len(several[name][3::SUPER]), -1))


def test_a_device_without_float64_is_given_none_beside_the_references_rows(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opensiglip.float64.widest", lambda device: torch.float32)
    batch = Steps(case.plans[1, 0, 1])[3].parts[0] | {"uniforms": torch.zeros(SUPER, 2, dtype=torch.float64)}
    found = case.reference.embed(batch, torch.device("cpu"))
    assert found["uniforms"].dtype == torch.float32 and found["group"].dtype == torch.int64


def test_what_is_chosen_keeps_the_rows_that_teach(case: Case) -> None:
    torch.manual_seed(0)
    parts = [case.reference.embed(part, torch.device("cpu")) for part in Steps(case.plans[1, 0, 1])[3].parts]
    learner = Learner.new(case.recipe, case.pipeline)
    chosen = case.curator().choose(learner, parts, 3, torch.device("cpu"))[0][0]
    assert not any(name.startswith("scorer_") for name in chosen)
    places = (chosen["group"][:, None] == parts[0]["group"]).nonzero()[:, 1]
    assert len(places) == BATCH
    assert torch.equal(parts[0]["teacher_image"], parts[0]["scorer_image"])
    for name in ("teacher_image", "teacher_text"):
        assert torch.equal(chosen[name], parts[0][name][places])


LOW_SCORES = {"score_resolution": LOW, "score_precision": "bf16"}


def test_a_reference_teaches_with_and_without_choosing_and_goes_on_bit_for_bit(
    go: Any, reference: str, tmp_path: Path
) -> None:
    for name, flags in (("alone", {}), ("chosen", {"curate": "learnability", "accumulate": 2, **LOW_SCORES})):
        given = {"reference": reference, "distil": "softmax", "distil_weight": 2.0} | flags
        summary = go(tmp_path / name, "siglip", **given)
        assert summary["precision"] == "no", "the steps' own, whatever the scores'"
        cut_short(3, lambda name=name, given=given: go(tmp_path / f"{name}-cut", "siglip", **given))
        go(tmp_path / f"{name}-cut", "siglip", resume=True, **given)
        assert_same_end(tmp_path / f"{name}-cut", tmp_path / name, 4)
        rows = read_lines(tmp_path / name / "metrics.jsonl")
        assert all(row["loss"] == pytest.approx(row["loss/sigmoid"] + 2 * row["loss/distil"], rel=1e-4) for row in rows)


@pytest.fixture(scope="module")
def teacher(go: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another SigLIP, of a third tokenizer and resolution."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    go(out, "siglip", resolution=24, length=20, vocabulary=290, steps=1, seed=1)
    return str(out)


def test_one_model_scores_and_another_teaches(case: Case) -> None:
    """Each gives its own rows, whichever comes first; what is chosen is the reference's, what is kept the teacher's."""
    torch.manual_seed(2)
    model = Model.new(case.reference.model.architecture, len(case.pipeline)).eval()
    fields: list[Field] = [ReferenceTexts(case.reference.pipeline, "teacher"), ReferenceImages(Frame(SIDE), "teacher")]
    scorer = replace(case.reference, writes=[SCORER])
    other = replace(case.reference, model=model, fields=fields, writes=[TEACHER], role="teacher")
    wide = replace(other, frame=NaFlex(8, 16, (16,)))  # its images are as wide as the widest of a part
    assert (scorer.early, other.early, wide.early) == (True, False, True)
    plan = case.plans[1, 0, 1]
    (batch,) = Steps(replace(plan, fields=[*plan.fields, *fields]))[3].parts
    assert "for_teacher_text" in batch and "for_teacher_image" in batch
    cpu = torch.device("cpu")
    both = other.embed(scorer.embed(batch, cpu), cpu)
    assert not any(name.startswith("for_") for name in both)
    backwards = scorer.embed(other.embed(batch, cpu), cpu)
    assert all(torch.equal(backwards[name], values) for name, values in both.items())
    plain = {name: values for name, values in batch.items() if not name.startswith("for_teacher")}
    alone = scorer.embed(plain, cpu)
    taught = replace(case.reference, model=model, writes=[TEACHER]).embed(plain, cpu)
    for kind in ("image", "text"):
        assert torch.equal(both[f"scorer_{kind}"], alone[f"scorer_{kind}"])
        assert torch.equal(both[f"teacher_{kind}"], taught[f"teacher_{kind}"])
        assert not torch.equal(both[f"teacher_{kind}"], both[f"scorer_{kind}"])
    torch.manual_seed(0)
    learner = Learner.new(case.recipe, case.pipeline)
    (chosen,), (expected,) = (case.curator().choose(learner, [part], 3, cpu)[0] for part in (both, alone))
    assert all(torch.equal(chosen[name], values) for name, values in expected.items())
    places = (chosen["group"][:, None] == both["group"]).nonzero()[:, 1]
    assert torch.equal(chosen["teacher_image"], both["teacher_image"][places])
    assert chosen.keys() - expected.keys() == {"teacher_image", "teacher_text"}


def test_two_models_read_caches_of_their_own_and_the_run_goes_on_bit_for_bit(
    go: Any, reference: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared: dict[str, Any] = {"reference": reference, "teacher": teacher, "distil": "softmax", "steps": 6}
    go(tmp_path / "encoded", features_gb=0, **shared)
    cached = shared | {"features": tmp_path / "features"}
    go(tmp_path / "cached", **cached)
    said = capsys.readouterr().out
    for role in ("reference  ", "teacher    "):
        assert f"{role} encodes every batch" in said and f"{role} reads cached embeddings of 24" in said
    assert len(list((tmp_path / "features").glob("reference-images-*/"))) == 2
    cut_short(3, lambda: go(tmp_path / "cut", **cached))
    go(tmp_path / "cut", resume=True, **cached)
    for name in ("cached", "cut"):
        assert_same_end(tmp_path / name, tmp_path / "encoded", 6)
    go(tmp_path / "one", **shared | {"teacher": None})
    ends = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("encoded", "one")]
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0]), "the teacher matters"


def test_rows_off_a_cache_are_those_of_no_cache_to_the_bit(
    go: Any, reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve steps of eight see the 24 examples four times. The second cached run finds what the first has written."""
    shared: dict[str, Any] = {"reference": reference, "steps": 12, "distil": "sigmoid"}
    go(tmp_path / "encoded", features_gb=0, **shared)
    assert "reference   encodes every batch: 0.0 GB are more than --features-gb 0" in capsys.readouterr().out
    for name, says in (("cached", "24 images: 0 known, encoding 24"), ("again", "24 images: 24 known, in")):
        go(tmp_path / name, features=tmp_path / "features", **shared)
        assert says in capsys.readouterr().out
        monkeypatch.setattr(Reference, "of_images", None)  # from now on no image is encoded
        assert_same_end(tmp_path / name, tmp_path / "encoded", 12)
    go(tmp_path / "short", features=tmp_path / "features", **shared | {"steps": 2})
    assert "cached embeddings of 24 examples" in capsys.readouterr().out, "nothing is left to be encoded"


def test_the_row_off_a_cache_is_that_of_the_caption_drawn(pipeline: TextPipeline) -> None:
    rows = {text: np.full(2, at) for at, text in enumerate(("", "a fox", "a harp"))}
    extras = {f"teacher{ROWS}": (np.full(2, 9), rows), f"reference{ROWS}": (np.zeros(2), {})}
    for caption, wanted in ((SimpleNamespace(text="a harp"), 2), (SimpleNamespace(text="a fox"), 1), (None, 0)):
        visit: Any = SimpleNamespace(example=SimpleNamespace(extras=extras), caption=caption)
        image, text = CachedRows("teacher", [TEACHER]).draw(visit, np.random.default_rng(0), pipeline)
        assert (image[0], text[0]) == (9, wanted)


def test_a_cache_that_does_not_pay_or_fit_is_not_written(
    go: Any, reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, why in (
        ({"steps": 3}, "a run of 24 visits sees few of 24 examples twice"),
        ({"steps": 4, "crop_area": 0.5}, "images are cropped or mirrored anew at each visit"),
        ({"steps": 4, "features_gb": 5e-6}, "0.0 GB are more than --features-gb 5e-06"),  # 2 * 24 rows of 33 float32
    ):
        go(tmp_path / why[:5], reference=reference, features=tmp_path / "features", **flags)
        assert f"reference   encodes every batch: {why}" in capsys.readouterr().out
    assert not (tmp_path / "features").exists()


def test_rows_that_are_known_need_no_room_on_the_disk(
    go: Any, reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, Any] = {"reference": reference, "features": tmp_path / "features"}
    go(tmp_path / "first", **shared)
    monkeypatch.setattr(reference_cache, "room_for", lambda folder, wanted: wanted <= 0)
    go(tmp_path / "second", **shared)
    assert capsys.readouterr().out.count("reads cached embeddings of 24 examples") == 2
    go(tmp_path / "third", **shared | {"features": tmp_path / "others"})
    assert "reference   encodes every batch: the disk of " in capsys.readouterr().out


def test_visits_are_of_the_steps_that_a_continued_run_takes(
    go: Any, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four steps are left, each is taken three times, with four images."""
    lines = ("from dataclasses import replace", "from opensiglip.recipes import Continuation, siglip") + (
        'def mine(*, size: str = "B/16", resolution: int = 32, length: int = 16):',
        '    """SigLIP that goes on slowly."""',
        "    plain = siglip(size=size, resolution=resolution, length=length)",
        "    return replace(plain, continuation=Continuation(share=0.5, stretch=3.0))",
    )
    (tmp_path / "mine.py").write_text("\n".join(lines))
    go(tmp_path / "before", "siglip")
    told = list[int]()

    def noted(one: Reference, sources: Any, visits: int, cache: Any) -> Any:
        told.append(visits)
        raise UserError("enough.")

    monkeypatch.setattr("opensiglip.training.assemble.with_rows", noted)
    with pytest.raises(UserError, match="enough"):
        go(
            tmp_path / "after",
            f"{tmp_path / 'mine.py'}:mine",
            continue_from=str(tmp_path / "before"),
            reference=reference,
            distil="softmax",
        )
    assert told == [4 * 2 * 3]


def test_other_weights_frames_precisions_and_text_lengths_have_other_rows(reference: str) -> None:
    def places(change: float = 0.0, precision: str = "no", **changes: Any) -> set[Path]:
        opened = Reference.open(reference, Frame(SIDE), torch.device("cpu"), nullcontext, [SCORER])
        with torch.no_grad():
            opened.model.logit_bias.add_(change)
        if "length" in changes:
            changes = {"pipeline": opened.pipeline.with_length(changes["length"])}
        opened = replace(opened, **changes)
        return {tower.folder for tower in towers(opened, precision, Path("features"), Frozen(False, False))}

    assert places() == places() and len(places()) == 2
    for other in (places(0.5), places(precision="bf16"), places(frame=Frame(SIDE)), places(length=12)):
        assert not places() & other


def test_each_model_gives_the_rows_that_it_is_named_for(reference: str, teacher: str) -> None:
    def writes(**flags: Any) -> list[tuple[str, set[str]]]:
        config = TrainConfig(data=("scenes",), out=Path("x"), reference=reference, **flags)
        found = references(config, Frame(SIDE), torch.device("cpu"), nullcontext)
        return [(one.role, set(one.writes)) for one in found]

    select, teach = {"curate": "learnability"}, {"distil": "softmax"}
    assert writes(**select) == [("reference", {SCORER})] and writes(**teach) == [("reference", {TEACHER})]
    assert writes(**select, **teach) == [("reference", {SCORER, TEACHER})]
    both = [("reference", {SCORER}), ("teacher", {TEACHER})]
    assert writes(**select, **teach, teacher=teacher) == both


def selected_section(run: Path) -> str:
    """The part of a run's report on selected examples, images and all."""
    page = (run / "report.html").read_text(encoding="utf-8")
    return page.partition("<h2>Selected examples</h2>")[2].partition("<h2>")[0]


def test_the_report_shows_the_twelve_most_and_least_selected_over_the_run(
    go: Any, reference: str, folder: str, tmp_path: Path
) -> None:
    """Six steps of eight read each of the 24 examples twice, and train on four."""
    go(tmp_path / "run", reference=reference, steps=6)
    said = selected_section(tmp_path / "run")
    assert "Of 24 training examples that <code>--curate learnability</code>" in said and "is counted" not in said
    shown = re.findall(r"Selected (\d) of 2 times, mean score (-?\d+\.\d+); caption,\s+human", said)
    counts, scores = [int(count) for count, _ in shown], [float(score) for _, score in shown]
    assert len(shown) == 24 and sum(counts) == 24 and set(counts) == {0, 1, 2}
    most = list(zip(counts, scores, strict=True))[:12]
    assert most == sorted(most, reverse=True), "ties by the mean score"
    least = list(zip(counts, scores, strict=True))[12:]
    assert least == sorted(least) and least[-1][0] <= most[-1][0]
    captions = re.findall(r'lang="en">(.*?)</dd>', said)
    assert len(set(captions)) == 24 and set(captions) <= set(open_source(folder).texts())
    tally = load_file(tmp_path / "run" / "checkpoints" / "step-00000006" / "tally.safetensors")
    texts = [open_source(folder).example(row).captions[0].text for row in range(24)]
    assert [int(tally["selected"][texts.index(caption)]) for caption in captions] == counts


def test_counts_are_of_visits_with_a_text_and_their_order_is_beyond_chance() -> None:
    tally = Tally(6)
    every, places = torch.tensor([True] * 4), torch.tensor([0, 1])
    nan = torch.tensor([1.0, 2.0, 3.0, float("nan")])
    tally.add(torch.tensor([0, 1, 2, 3]), nan, every, places)
    tally.add(torch.tensor([0, 1, 2, 5]), torch.tensor([3.0, 0.0, 5.0, 1.0]), every & (nan < 4), torch.tensor([0, 3]))
    assert tally.seen.tolist() == [2, 2, 2, 1, 0, 0], "the last one of the second step has no text"
    assert tally.selected.tolist() == [2, 1, 0, 0, 0, 0] and tally.scores.tolist() == [4, 2, 8, 0, 0, 0]
    # 3 of 7 visits were selected: beyond chance are 2 - 6/7, 1 - 6/7, -3/7 (row 3) and -6/7 (row 2).
    most, least = tally.ends(2)
    assert most == [Counted(0, 2, 2, 2.0), Counted(1, 2, 1, 1.0)]
    assert least == [Counted(2, 2, 0, 4.0), Counted(3, 1, 0, 0.0)] and tally.examples == 4
    assert tally.ends(3) == ([*most, Counted(3, 1, 0, 0.0)], [Counted(2, 2, 0, 4.0)]), "no example stands in both"
    assert Tally(0).ends(12) == ([], [])


def test_of_much_data_every_so_many_rows_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("opensiglip.training.curation.tally.MOST", 4)
    tally = Tally(11)
    rows = torch.arange(11)
    tally.add(rows, rows.float(), rows > -1, torch.tensor([3, 4, 9]))
    assert tally.stride == 3 and tally.seen.tolist() == [1, 1, 1, 1]
    assert [one.row for one in tally.ends(2)[0]] == [9, 3] and tally.scores.tolist() == [0, 3, 6, 9]
    tally.save(tmp_path / "tally.safetensors")
    same, other = Tally(11), Tally(8)
    for one in (same, other):
        one.restore(tmp_path / "tally.safetensors")
        one.restore(tmp_path / "that of an earlier version is not there")
    assert same.ends(4) == tally.ends(4) and other.examples == 0 and other.stride == 2
    assert len(Tally(4).seen) == len(Tally(7).seen) == len(Tally(8).seen) == 4


@pytest.mark.parametrize(
    ("rows", "stride", "counted"), [(262_144, 1, 262_144), (262_145, 2, 131_073), (10**6, 4, 250_000)]
)
def test_of_up_to_262144_rows_all_are_counted(rows: int, stride: int, counted: int) -> None:
    tally = Tally(rows)
    assert (tally.stride, len(tally.seen)) == (stride, counted)
    last = torch.tensor([(counted - 1) * stride])
    tally.add(last, torch.ones(1), last > 0, torch.tensor([0]))
    assert tally.ends(1)[0] == [Counted(int(last), 1, 1, 1.0)]


def test_a_row_is_its_examples_number_among_those_of_all_sources(pipeline: TextPipeline) -> None:
    sources = [
        open_source(f"scenes:drawings=20,seed={seed},count={count}", pixels=16) for seed, count in ((0, 5), (1, 4))
    ]
    steps = Steps(DataPlan(sources=sources, frame=Frame(16), fields=[], pipeline=pipeline, batch_size=4, seed=0))
    visits = [steps.visit(position, Counter(), Frame(16)) for position in range(9)]
    assert sorted(visit.row for visit in visits) == list(range(9))
    for visit in visits:
        source, index = (sources[0], visit.row) if visit.row < 5 else (sources[1], visit.row - 5)
        assert torch.equal(visit.image, source.example(index).image)


def test_an_example_that_can_not_be_read_at_the_end_is_left_out(case: Case, pipeline: TextPipeline) -> None:
    class Gone(type(open_source("scenes", pixels=16))):  # type: ignore[misc]
        def example(self, index: int, language: str | None = None) -> Any:
            if index % 2:
                raise OSError("the disk is gone")
            return super().example(index, language)

    source = open_source("scenes:drawings=20,count=6", pixels=16)
    source.__class__ = Gone
    plan = DataPlan(sources=[source], frame=Frame(16), fields=[], pipeline=pipeline, batch_size=4, seed=0)
    curator = replace(case.curator(), tally=Tally(6))
    rows = torch.arange(6)
    curator.tally.add(rows, rows.float(), rows > -1, torch.tensor([4, 5]))
    found = extremes(curator, plan)
    assert [(one.selected, one.score) for one in found.most] == [(1, 4.0), (0, 2.0), (0, 0.0)]
    assert found.examples == 6 and not found.least


def test_an_example_of_several_captions_is_shown_with_its_first_and_their_number() -> None:
    captions = (Caption("ein Fuchs", "de", "mt"), Caption("a fox", "en"), Caption("a harp", "en", "exchanged"))
    example = Example(torch.zeros(3, 8, 8, dtype=torch.uint8), captions)
    shown = SelectedExample.of(example, 2, 3, 0.5)
    assert (shown.caption, shown.language, shown.writer, shown.captions) == ("ein Fuchs", "de", "mt", 3)
    assert (shown.selected, shown.seen, shown.score) == (2, 3, 0.5)


def test_the_examples_shown_are_those_of_their_sources(case: Case, pipeline: TextPipeline) -> None:
    """Of sources of five and four rows, row 6 is the second one's row 1. It is selected; ties are by the score."""
    first, second = (
        open_source(f"scenes:drawings=20,seed={seed},count={count}", pixels=16) for seed, count in ((0, 5), (1, 4))
    )
    plan = DataPlan(sources=[first, second], frame=Frame(16), fields=[], pipeline=pipeline, batch_size=4, seed=0)
    curator = replace(case.curator(), tally=Tally(9))
    rows = torch.tensor([0, 4, 5, 6, 8])
    curator.tally.add(rows, torch.tensor([1.0, 2.0, 3.0, 0.5, 4.0]), rows > -1, torch.tensor([3]))
    examples = [(second, 1), (second, 3), (second, 0), (first, 4), (first, 0)]
    shown = extremes(curator, plan).most
    assert [one.caption for one in shown] == [source.example(row).captions[0].text for source, row in examples]
    assert [(one.selected, one.seen, one.score) for one in shown[:2]] == [(1, 1, 0.5), (0, 1, 4.0)]
