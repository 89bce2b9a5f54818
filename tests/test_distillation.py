"""Self-distillation: values, what learns and what does not, when it begins, and what it costs."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPE, Run, Small, collate, distinct_recipes, draw, exact
from torch import Tensor

from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.losses import fused
from opensiglip.losses.prototypes import prototype_distillation
from opensiglip.models.ema import Ema, Momentum
from opensiglip.models.heads import Head, HeadShape
from opensiglip.models.model import Model
from opensiglip.models.sizes import head
from opensiglip.models.towers import Text, Vision
from opensiglip.objectives.base import Encoded, Signal
from opensiglip.objectives.distillation import Distilled, LocalToGlobal, MaskedPatches
from opensiglip.recipes import siglip2
from opensiglip.training.health import Alarms, Collapsed, signals
from opensiglip.training.learner import Learner, Outcome, denominators
from opensiglip.training.log import read_lines
from opensiglip.types import Batch

HEAD = HeadShape(24, 8, 20)
LIGHTLY = json.loads((Path(__file__).parent / "goldens" / "lightly.json").read_text())


@pytest.fixture
def learner(small: Small, pipeline: TextPipeline) -> Learner:
    recipe = small("siglip2", momentum=0.9)
    torch.manual_seed(0)
    return Learner.new(recipe, pipeline).double()


@pytest.fixture
def batch(small: Small, visits: list[Visit], pipeline: TextPipeline) -> Batch:
    recipe = small("siglip2")
    return exact(collate(recipe, draw(recipe, visits[:6], pipeline), pipeline))


def step(learner: Learner, batch: Batch) -> Outcome:
    outcome = learner(batch, denominators(learner, [batch]))
    assert isinstance(outcome, Outcome)
    return outcome


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_both_terms_are_the_papers_sums(learner: Learner, batch: Batch) -> None:
    """DINO's and iBOT's formulas again, by loops over float64 scores."""
    for name in ("local_to_global", "masked_patches"):
        term = learner.objectives[name]
        assert isinstance(term, Distilled)
        torch.nn.init.normal_(term.centre, std=0.1)
        torch.nn.init.normal_(term.slow_head.copy.prototypes)  # a teacher that is not the student
    encoded = Encoded(learner.model, batch, learner.teacher)
    with torch.no_grad():
        term = learner.objectives["local_to_global"]
        student = F.linear(*term.head(encoded.image("local").pooled)).numpy()
        whole = F.linear(*term.slow_head(encoded.teacher("global").pooled)).numpy()
        term = learner.objectives["masked_patches"]
        masked = F.linear(*term.head(encoded.masked("global", term.token).tokens)).numpy()
        seen = F.linear(*term.slow_head(encoded.teacher("global").tokens)).numpy()
    outcome = step(learner, batch)
    losses, notes = ({name: float(x.detach().mean()) for name, x in some.items()} for some in outcome)

    centre = learner.objectives["local_to_global"].centre.numpy()
    total = 0.0
    for b in range(6):
        p = softmax((whole[b] - centre) / 0.04)
        total += np.mean([-(p * np.log(softmax(student[8 * b + v] / 0.1))).sum() for v in range(8)]) / 6
    assert abs(losses["local_to_global"] - total) < 1e-10

    centre, total = learner.objectives["masked_patches"].centre.numpy(), 0.0
    for b in range(6):
        places = batch["mask_indices"][b].tolist()
        ps = [softmax((seen[b, i] - centre) / 0.04) for i in places]
        total += (
            np.mean([-(p * np.log(softmax(masked[b, i] / 0.1))).sum() for p, i in zip(ps, places, strict=True)]) / 6
        )
    assert abs(losses["masked_patches"] - total) < 1e-10

    p = softmax((whole - learner.objectives["local_to_global"].centre.numpy()) / 0.04)
    entropy = -(p * np.log(p + 1e-300)).sum(-1).mean()
    assert abs(notes["local_to_global/teacher_entropy"] - entropy) < 1e-10
    assert abs(notes["local_to_global/kl"] - (losses["local_to_global"] - entropy)) < 1e-10
    used = len(set(p.argmax(-1).tolist())) / min(len(p), p.shape[-1])
    assert abs(notes["local_to_global/prototypes_used"] - used) < 1e-10
    expected = {"loss": 1.0, "sigmoid": 1.0, "caption": 1.0, "local_to_global": 0.25, "masked_patches": 0.0625}
    assert set(losses) == set(expected)
    assert abs(losses["loss"] - sum(losses[k] * w for k, w in expected.items() if k != "loss")) < 1e-10


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_values_are_lightlys(name: str) -> None:
    """Against lightly's DINOLoss and IBOTPatchLoss, by numbers that tests/goldens/make_lightly.py printed."""
    case = LIGHTLY[name]
    student, teacher, centre = (
        torch.tensor(case[key], dtype=torch.float64) for key in ("student", "teacher", "centre")
    )
    term, encoded = term_of_scores(centre.flatten()), Encoded(None, {})  # type: ignore[arg-type]
    if name == "dino":  # [L, B, K] and [1, B, K]
        loss = term.distil(encoded, student.transpose(0, 1), teacher.transpose(0, 1)) / student[..., 0].numel()
    else:  # rows of all images' masked patches; per-image means
        rows = zip(*(x[:, None].split(case["masked_of_each"]) for x in (student, teacher)), strict=True)
        loss = torch.stack([term.distil(encoded, *some) / len(some[0]) for some in rows]).mean()
    assert float(loss) == pytest.approx(case["loss"], rel=1e-6)
    if name == "dino":
        term.after_step(encoded.notes)
        expected = torch.tensor(case["centre_after"], dtype=torch.float64).flatten()
        assert torch.allclose(term.centre, expected, atol=1e-6)


def term_of_scores(centre: Tensor) -> LocalToGlobal:
    """A term whose students and teachers are their scores [K] themselves."""
    term = LocalToGlobal(4, HeadShape(8, 4, len(centre)), weight=1.0, start=0.0).to(centre.dtype)
    for part in (term.head, term.slow_head):
        part.forward = lambda scores: (scores, torch.eye(len(centre), dtype=centre.dtype))  # type: ignore[method-assign]
    term.centre.copy_(centre)
    return term


def plain_distillation(
    student: Tensor, prototypes: Tensor, teacher: Tensor, slow: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor]:
    """The equation word by word, with all scores at once, and the teacher's probabilities."""
    answers = ((teacher @ slow.T - centre) / 0.04).softmax(-1)
    loss = -(answers.mean(1, keepdim=True) * (student @ prototypes.T / 0.1).log_softmax(-1)).sum()
    return loss, answers


@pytest.mark.parametrize(("local", "whole"), [(1, 1), (3, 2)])
def test_in_chunks_it_is_the_plain_equation(local: int, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value, slopes and what is noted of the teacher, over blocks and strips that do not divide the rows."""
    group = (local + whole) * 30 * 8  # bytes of its scores
    monkeypatch.setattr(fused, "CPU", fused.TileSizes(tile=0, block=5 * group, tokens=1, strip=2 * group))
    torch.manual_seed(0)
    shapes = (11, local, 6), (30, 6), (11, whole, 6), (30, 6), (30,)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for x in inputs[:2]:
        x.requires_grad_()
    loss, sums = prototype_distillation(*inputs, temperature=0.1, slow_temperature=0.04)
    expected, answers = plain_distillation(*inputs)
    for ours, theirs in zip(*(torch.autograd.grad(3 * x, inputs[:2]) for x in (loss, expected)), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(sums.scores, (inputs[2] @ inputs[3].T).sum((0, 1)), atol=1e-12)
    assert torch.allclose(sums.probabilities, answers.sum((0, 1)), atol=1e-12)
    assert torch.equal(sums.used.nonzero().flatten(), answers.argmax(-1).unique())
    assert float(sums.entropy) == pytest.approx(float(torch.special.entr(answers).sum()), rel=1e-12)
    assert float(sums.mean_entropy) == pytest.approx(float(torch.special.entr(answers.mean(1)).sum()), rel=1e-12)
    with torch.no_grad():
        assert prototype_distillation(*inputs, temperature=0.1, slow_temperature=0.04)[0] == loss


def test_the_teacher_of_two_whole_views_is_the_mean_of_both(
    small: Small, visits: list[Visit], pipeline: TextPipeline
) -> None:
    """SILC's teacher sees two large crops: the loss is the mean of those of either alone."""
    recipe = small("silc")
    batch = exact(collate(recipe, draw(recipe, visits[:4], pipeline), pipeline))
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    term = learner.objectives["local_to_global"]
    torch.nn.init.normal_(term.slow_head.copy.prototypes)

    def loss(*views: int) -> float:
        some = batch | {"global": batch["global"][:, list(views)]}
        return float(term(Encoded(learner.model, some, learner.teacher)).detach())

    assert loss(0, 1) == pytest.approx((loss(0) + loss(1)) / 2, rel=1e-12)
    assert abs(loss(0) - loss(1)) > 1e-6


def test_products_run_in_the_dtype_of_autocast_and_sums_are_wide() -> None:
    torch.manual_seed(0)
    inputs = [F.normalize(torch.randn(shape), dim=-1) for shape in ((40, 1, 8), (30, 8), (40, 1, 8), (30, 8))]
    exact, _ = plain_distillation(*inputs, torch.zeros(30))
    with torch.autocast("cpu", torch.bfloat16):
        loss, sums = prototype_distillation(*inputs, torch.zeros(30), temperature=0.1, slow_temperature=0.04)
    assert loss.dtype == sums.scores.dtype == torch.float32
    assert loss.item() != exact.item() and loss.item() == pytest.approx(exact.item(), rel=0.01)


def test_scores_are_cosines() -> None:
    head = Head(16, HEAD)
    scores = F.linear(*head(torch.randn(3, 5, 16) * 100))
    assert scores.shape == (3, 5, 20) and float(scores.detach().abs().max()) <= 1 + 1e-5


def test_nothing_reaches_the_teacher_and_all_else_learns(learner: Learner, batch: Batch) -> None:
    step(learner, batch).losses["loss"].backward()
    slow = {name for name, _ in learner.named_parameters() if "teacher." in name or "slow_head." in name}
    assert slow and all((parameter.grad is None) == (name in slow) for name, parameter in learner.named_parameters())
    assert learner.objectives["masked_patches"].token.grad.abs().max() > 0


def test_only_hidden_places_count(learner: Learner, batch: Batch) -> None:
    """The loss has no slope at the student's visible patches, and the teacher sees what is hidden."""
    term = learner.objectives["masked_patches"]
    encoded = Encoded(learner.model, batch, learner.teacher)
    features = encoded.masked("global", term.token)
    tokens = features.tokens.detach().requires_grad_()
    encoded.passes["masked:global"] = features._replace(tokens=tokens)
    term(encoded).backward()
    reached = tokens.grad.abs().sum(-1) > 0
    expected = torch.zeros_like(reached).scatter(1, batch["mask_indices"], True)
    assert torch.equal(reached, expected) and expected.float().mean() == 0.5
    changed = batch | {"global": batch["global"].clone()}
    patch, (row, column) = 8, divmod(int(batch["mask_indices"][0, 0]), 4)
    changed["global"][0, 0, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 0
    student = [Encoded(learner.model, b).masked("global", term.token).tokens for b in (batch, changed)]
    teacher = [Encoded(learner.model, b, learner.teacher).teacher("global").tokens for b in (batch, changed)]
    assert torch.equal(*student) and not torch.equal(*teacher)


def test_a_hidden_patch_is_the_token_at_its_place(learner: Learner) -> None:
    vision = learner.model.vision
    assert isinstance(vision, Vision)
    pixels, token = torch.randn(2, 3, 32, 32).double(), torch.randn(32).double()
    hidden = torch.tensor([[1, 5], [0, 15]])
    embedding = vision.tower.embeddings.patch_embedding
    x = embedding(pixels).flatten(2).mT.clone()
    for b in range(2):
        x[b, hidden[b]] = token
    x = x + vision.tower.embeddings.position_embedding.weight
    by_hand = vision.tower.post_layernorm(vision.tower.encoder(inputs_embeds=x).last_hidden_state)
    assert torch.allclose(vision(pixels, hidden, token).tokens, by_hand, atol=1e-12)


def test_the_last_stage_costs_five_passes(learner: Learner, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text, plain image, local crops in one, masked view, teacher: none twice."""
    passes: list[tuple[str, tuple[int, ...]]] = []
    plain = Vision.forward

    def counted(self: Vision, pixels: Tensor, *rest: Any) -> Any:
        passes.append(("teacher" if not next(self.parameters()).requires_grad else "vision", tuple(pixels.shape)))
        return plain(self, pixels, *rest)

    monkeypatch.setattr(Vision, "forward", counted)
    read = Text.forward

    def counted_text(self: Text, ids: Tensor) -> Any:
        passes.append(("text", tuple(ids.shape)))
        return read(self, ids)

    monkeypatch.setattr(Text, "forward", counted_text)
    step(learner, batch)
    assert sorted(kind for kind, _ in passes) == ["teacher", "text", "vision", "vision", "vision"]
    assert ("vision", (48, 3, 16, 16)) in passes, "eight local crops of each image in one pass"
    passes.clear()
    learner.activate(0.5)
    step(learner, batch)
    assert sorted(kind for kind, _ in passes) == ["text", "vision"]


def test_the_teacher_is_the_student_at_the_switch_and_lags_after(learner: Learner, batch: Batch) -> None:
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)

    def gap(slow: Ema) -> float:
        pairs = zip(slow.copy.parameters(), slow.source[0].parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    def train(progress: float) -> None:
        optimizer.zero_grad()
        losses, notes = step(learner, batch)
        losses["loss"].backward()
        optimizer.step()
        learner.after_step(notes, progress)

    assert learner.teacher is not None
    assert learner.activate(0.0) == {"sigmoid", "caption"}
    assert all(p.grad is None for p in learner.objectives.parameters())
    train(0.0)
    assert gap(learner.teacher) > 0, "before its lessons it does not follow"
    begun = learner.activate(0.8)
    learner.start_teachers(begun - {"sigmoid", "caption"})
    term = learner.objectives["local_to_global"]
    assert isinstance(term, Distilled)
    assert gap(learner.teacher) == gap(term.slow_head) == 0
    assert not term.centre.any()
    before = [p.detach().clone() for p in learner.teacher.copy.parameters()]
    train(0.8)
    for slow, old, fast in zip(
        learner.teacher.copy.parameters(), before, learner.model.vision.parameters(), strict=True
    ):
        assert torch.allclose(slow, 0.9 * old + 0.1 * fast, atol=1e-12)
    assert gap(learner.teacher) > 0 and gap(term.slow_head) > 0 and term.centre.any()


def test_siglip2_with_averages_of_the_heads_alone_is_taught_by_its_own_tower(
    small: Small, batch: Batch, pipeline: TextPipeline
) -> None:
    torch.manual_seed(0)
    learner = Learner.new(small("siglip2", heads_alone=True), pipeline).double()
    assert learner.teacher is None and not any(name.startswith("teacher") for name in learner.state_dict())
    encoded = Encoded(learner.model, batch, learner.teacher)
    tokens = encoded.teacher("global").tokens
    assert torch.equal(tokens, learner.model.vision(batch["global"].flatten(0, 1)).tokens) and not tokens.requires_grad
    term = learner.objectives["masked_patches"]
    assert isinstance(term, Distilled)
    before = term.slow_head.copy.prototypes.clone()
    losses, notes = step(learner, batch)
    losses["loss"].backward()
    torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1).step()
    learner.after_step(notes, 0.9)
    assert not torch.equal(term.slow_head.copy.prototypes, before), "the head's average moves"


@pytest.mark.parametrize(("start", "end", "expected"), [(0.9, 1.0, [0.9, 0.95, 1.0]), (0.7, None, [0.7, 0.7, 0.7])])
def test_the_momentum_is_fixed_or_goes_along_a_cosine_from_the_teachers_start_to_the_end(
    start: float, end: float | None, expected: list[float], learner: Learner
) -> None:
    assert learner.teacher is not None
    for term in learner.objectives.values():
        term.after_step = lambda notes: None
    learner.momentum = Momentum(start, end)
    student = next(learner.model.vision.parameters())
    average = next(learner.teacher.copy.parameters())
    for progress, momentum in zip((0.8, 0.9, 1.0), expected, strict=True):
        torch.nn.init.ones_(student)
        torch.nn.init.zeros_(average)
        learner.after_step({}, progress)
        assert float(average.flatten()[0]) == pytest.approx(1 - momentum)


def test_terms_that_share_a_teacher_agree_on_its_momentum(small: Small, pipeline: TextPipeline) -> None:
    recipe = small("siglip2")
    recipe.objectives[-1].teacher = Momentum(0.5)
    with pytest.raises(ValueError, match="agree on its momentum"):
        Learner.new(recipe, pipeline)


def test_a_teacher_with_batchnorm_has_the_students_statistics_and_stays_in_eval_mode() -> None:
    student = torch.nn.BatchNorm1d(3).train()
    teacher = Ema(student).train()
    student(torch.randn(8, 3) + 5)
    teacher.update(0.5)
    assert torch.equal(teacher.copy.running_mean, student.running_mean) and not teacher.copy.training


@pytest.mark.parametrize(
    ("size", "silc", "tips"),
    [
        ("B/16", 0.25, 0.0625),
        ("L/16", 0.5, 0.125),
        ("So400m/14", 1.0, 0.25),
        ("g/16", 0.5, 0.125),
        ("tiny", 0.25, 0.0625),
        ("S/16", 0.25, 0.0625),
    ],
)
def test_weights_are_the_papers_by_size(size: str, silc: float, tips: float) -> None:
    weights = {o.name: (o.weight, o.start) for o in siglip2(size=size, prototypes=8).objectives}
    assert weights == {
        "sigmoid": (1.0, 0.0),
        "caption": (1.0, 0.0),
        "local_to_global": (silc, 0.8),
        "masked_patches": (tips, 0.8),
    }


def test_short_runs_may_weigh_masked_prediction_more() -> None:
    weights = {o.name: o.weight for o in siglip2(size="tiny", prototypes=8, masked_weight=2.0).objectives}
    assert weights == {"sigmoid": 1.0, "caption": 1.0, "local_to_global": 0.25, "masked_patches": 2.0}


def test_a_narrow_heads_layers_start_as_large_as_dinos() -> None:
    """0.02 at 2048 inputs, so outputs keep their size; DINO's own head has 0.02 in every layer."""
    torch.manual_seed(0)
    narrow, plain = Head(128, HeadShape(512, 64, 32, by_width=True)), Head(768, HeadShape(512, 64, 32))
    for layer in narrow.layers:
        assert float(layer.weight.detach().std()) == pytest.approx(0.02 * (2048 / layer.in_features) ** 0.5, rel=0.03)
    for layer in plain.layers:
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.03)
    assert head("tiny").by_width and not head("B/16").by_width


def test_a_run_through_the_switch_leaves_terms_signals_and_a_plain_model(run: Run, tmp_path: Path) -> None:
    summary = run(tmp_path / "run", steps=10)
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    late = {
        *("loss/local_to_global", "loss/masked_patches"),
        *(
            f"{term}/{what}"
            for term in ("local_to_global", "masked_patches")
            for what in ("teacher_entropy", "teacher_information", "kl", "prototypes_used", "centre_norm")
        ),
    }
    assert all(set(row) & late == (late if row["step"] >= 8 else set()) for row in rows)
    assert {"logit_scale", "logit_bias"} <= set(rows[0]) and rows[0]["logit_scale"] == pytest.approx(10, rel=1e-2)
    assert set(summary["losses"]) >= {"loss/local_to_global", "loss/masked_patches"}
    assert rows[8]["local_to_global/kl"] < math.log(48)
    saved = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert not any(word in saved for word in (b"teacher", b"slow_head", b"prototypes", b"centre"))


def test_every_stage_runs_in_the_precision_asked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low: list[bool] = []
    plain = Vision.forward

    def watched(self: Vision, pixels: Tensor, *rest: Any) -> Any:
        low.append(torch.is_autocast_enabled(pixels.device.type))
        return plain(self, pixels, *rest)

    monkeypatch.setattr(Vision, "forward", watched)
    run(tmp_path / "run", precision="bf16")
    assert low == [True] * (5 + 4)  # five steps of one view, one of four


def test_a_collapsed_teacher_warns_and_then_ends_the_run(learner: Learner, capsys: pytest.CaptureFixture[str]) -> None:
    top = math.log(len(learner.objectives["local_to_global"].centre))

    def found(local: float) -> list[Signal]:
        entropies = {"masked_patches": top / 2, "local_to_global": local}
        notes = {f"{name}/teacher_entropy": torch.tensor(x) for name, x in entropies.items()}
        informed = {f"{name}/teacher_information": torch.tensor(float(x == top / 2)) for name, x in entropies.items()}
        return signals(learner, notes | informed)

    for entropy, words in ((0.0, "same prototype"), (top, "equally likely")):
        alarms, bad, fine, unknown = Alarms(), found(entropy), found(top / 2), found(math.nan)
        for place in range(Signal.stop + 10):  # a good step between starts the count again
            assert alarms.check(place, bad if place % (Signal.warn - 1) else fine, 0.5)
        assert capsys.readouterr().err == ""
        alarms.check(0, fine, 0.5)
        healthy = [alarms.check(place, bad, 0.5) for place in range(Signal.stop - 1)]
        assert healthy == [place + 1 < Signal.warn for place in range(Signal.stop - 1)]
        assert capsys.readouterr().err.count(words) == 1
        alarms.check(0, unknown, 0.5)  # a skipped step says nothing
        with pytest.raises(Collapsed, match="last good checkpoint with another --momentum or --lr and --changed"):
            alarms.check(Signal.stop, bad, 0.89)
        assert not alarms.check(Signal.stop + 1, bad, 0.9), "in its last tenth a run goes on to its end"


def health(scores: Tensor) -> tuple[dict[str, float], list[Signal]]:
    """Notes and signals of a step whose teacher gives these scores [B, K]."""
    term, encoded = term_of_scores(torch.zeros(scores.shape[1])), Encoded(None, {})  # type: ignore[arg-type]
    term.distil(encoded, torch.zeros_like(scores)[:, None], scores[:, None])
    notes = {name.removeprefix("local_to_global/"): float(x) for name, x in encoded.notes.items() if x.ndim == 0}
    return notes, term.health(encoded.notes)


def test_a_teacher_that_says_nearly_the_same_of_all_images_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """As in a run of `tiny`: 3 prototypes for 64 images, the entropy from 4.1 to 6.7 of ln 1024 = 6.93."""
    alarms, common = Alarms(), torch.randn(1024, generator=torch.Generator().manual_seed(0))
    images = torch.arange(64)
    for step, width in enumerate(torch.linspace(0.055, 0.02, 50)):
        scores = width * common.expand(64, -1).clone()
        scores[images, images % 3] = scores.max() + 0.02
        notes, signals = health(scores)
        assert alarms.check(step, signals, 0.5), "checkpoints are saved"
        assert notes["prototypes_used"] == 3 / 64 and 4 < notes["teacher_entropy"] < 6.9
        assert ("nearly the same for all images" in capsys.readouterr().err) == (step == 49)
    assert notes["teacher_entropy"] > 6.7
    for step in range(1000):
        alarms.check(50 + step, signals, 0.5)  # it is left at that


@pytest.mark.parametrize(("usual", "warned"), [(0.15, 1), (0.25, 0)])
def test_one_batch_of_another_kind_neither_ends_a_warning_nor_makes_one(
    usual: float, warned: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Information below the limit but for every tenth batch, as in a run of `tiny` whose teacher told less and less."""
    term, alarms = LocalToGlobal(4, HeadShape(8, 4, 1024), weight=1.0, start=0.0), Alarms()
    for step in range(60):
        information = 0.4 - usual if step % 10 == 9 else usual
        notes = {"teacher_entropy": 5.0, "teacher_information": information}
        alarms.check(step, term.health({f"local_to_global/{name}": torch.tensor(x) for name, x in notes.items()}), 0.5)
    assert capsys.readouterr().err.count("nearly the same for all images") == warned


def test_a_healthy_teacher_is_not_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """64 images of 20 kinds: at least sure of each, and later so; the information is the entropy of the kinds."""
    alarms, images = Alarms(), torch.arange(64)
    for step, sure in enumerate(torch.linspace(0.3, 1.0, 200)):
        scores = torch.zeros(64, 1024)
        scores[images, images % 20] = sure
        notes, signals = health(scores)
        assert alarms.check(step, signals, 0.5) and capsys.readouterr().err == ""
    shares = (images % 20).bincount() / 64
    assert notes["teacher_information"] == pytest.approx(
        float(torch.special.entr(shares).sum()) / math.log(64), rel=1e-3
    )


def test_no_checkpoint_of_a_collapsed_run_replaces_the_last_good_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher gives one answer from the first lesson, at step 2 of 10, on; two alarms in a row are a warning."""
    plain = Distilled.distil

    def collapsed(self: Distilled, encoded: Encoded, student: Tensor, teacher: Tensor) -> Tensor:
        loss = plain(self, encoded, student, teacher)
        for what in ("entropy", "information"):
            encoded.notes[f"{self.name}/teacher_{what}"] = torch.zeros(())
        return loss

    monkeypatch.setattr(Distilled, "distil", collapsed)
    monkeypatch.setattr(Signal, "warn", 2)
    monkeypatch.setattr(Signal, "stop", 6)
    monkeypatch.setattr(Signal.__init__, "__defaults__", (None, "another --lr", 2, 6))
    with pytest.raises(Collapsed, match="for 6 steps at step 7"):
        run(tmp_path / "run", steps=10, save_every=1, distill_start=0.2)
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-00000002", "step-00000003"], "the second alarm is at step 3, after which nothing is saved"
    monkeypatch.setattr(Signal, "stop", 8)
    monkeypatch.setattr(Signal.__init__, "__defaults__", (None, "another --lr", 2, 8))
    run(tmp_path / "late", steps=10, save_every=1, distill_start=0.2)  # the eighth alarm is in the last tenth


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, where a term stays in Python
@pytest.mark.parametrize("name", distinct_recipes())
def test_a_step_compiles_whole(name: str, small: Small, visits: list[Visit], pipeline: TextPipeline) -> None:
    recipe = small(name, replace(SHAPE, depth=1))  # a second layer only takes longer to compile
    batch = exact(collate(recipe, draw(recipe, visits[:4], pipeline), pipeline))
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    live = denominators(learner, [batch])
    plain = learner(batch, live)
    torch.compiler.reset()  # of the recipes before: it gives up after eight
    whole = not any(objective.generates for objective in recipe.objectives)
    compiled = torch.compile(learner, backend="aot_eager", fullgraph=whole)(batch, live)
    assert set(plain.losses) == set(compiled.losses)
    plain.losses["loss"].backward()
    slopes = {key: p.grad.clone() for key, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    compiled.losses["loss"].backward()
    for key, value in plain.losses.items():
        assert torch.allclose(value, compiled.losses[key], atol=1e-12)
    gaps = {key: float((p.grad - slopes[key]).abs().max()) for key, p in learner.named_parameters() if key in slopes}
    assert max(gaps.values()) < 1e-10


def test_tips2_predicts_every_patch_from_a_teacher_that_is_the_students_tower(
    small: Small, visits: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small("tips2")
    batch = exact(collate(recipe, draw(recipe, visits[:4], pipeline), pipeline))
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    assert learner.teacher is None and not any(name.startswith("teacher") for name in learner.state_dict())
    term, vision = learner.objectives["masked_patches"], learner.model.vision
    assert isinstance(term, MaskedPatches)
    torch.nn.init.normal_(term.token)
    torch.nn.init.normal_(term.slow_head.copy.prototypes)  # another head than the student's
    encoded = Encoded(learner.model, batch, learner.teacher)
    encoded.image("global")  # as the sigmoid asks for it
    ours = term(encoded)
    whole = batch["global"].flatten(0, 1)
    with torch.no_grad():
        answers = (F.linear(*term.slow_head(vision(whole).tokens)) / 0.04).softmax(-1)
    student = F.linear(*term.head(vision(whole, batch["mask_indices"], term.token).tokens))
    assert student.shape[1] == 16 > batch["mask_indices"].shape[1]
    plain = -(answers * (student / 0.1).log_softmax(-1)).sum(-1).mean(1).sum()
    weights = [p for p in (*vision.parameters(), *term.head.parameters(), term.token) if p.requires_grad]
    slopes = [torch.autograd.grad(loss, weights, allow_unused=True) for loss in (ours, plain)]
    assert ours.item() == pytest.approx(plain.item(), abs=1e-10)
    gaps = [float((x - y).abs().max()) for x, y in zip(*slopes, strict=True) if x is not None and y is not None]
    assert len(gaps) > 20 and max(gaps) < 1e-10
    late = Encoded(learner.model, batch, learner.teacher)  # asked for before the sigmoid does
    assert torch.equal(late.teacher("global").tokens, encoded.teacher("global").tokens)
    assert not late.teacher("global").tokens.requires_grad and late.image("global").tokens.requires_grad
    before = term.slow_head.copy.prototypes.clone()
    learner.after_step(encoded.notes | learner(batch, denominators(learner, [batch])).notes, 0.5)
    assert not torch.equal(term.slow_head.copy.prototypes, before), "the head's average moves"


def test_tips_pools_by_two_probes_and_silc_aligns_both_views(
    small: Small, visits: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small("tips")
    first, second = recipe.objectives[:2]
    assert (first.weight, second.weight) == (0.5, 0.5) and second.probe is not None and first.probe is None
    assert [o.weight for o in recipe.objectives[2:]] == [1.0, 2.0]
    assert recipe.fields[-1].count == round(0.75 * 16)
    torch.manual_seed(0)
    model = Model.new(recipe.architecture, len(pipeline)).double()
    tokens = torch.randn(2, 16, SHAPE.width).double()
    head = model.vision.tower.head
    assert torch.allclose(model.vision.pool(tokens, head.probe), head(tokens), atol=1e-12)

    recipe = small("silc")
    batch = exact(collate(recipe, draw(recipe, visits[:4], pipeline), pipeline))
    assert batch["global"].shape[1] == 2
    sigmoid = recipe.objectives[0]
    whole = [sigmoid.compare(*sigmoid.features(Encoded(model, batch)))]
    for view in (0, 1):
        one = batch | {"global": batch["global"][:, view : view + 1]}
        whole.append(sigmoid.compare(*sigmoid.features(Encoded(model, one))))
    assert torch.allclose(whole[0], (whole[1] + whole[2]) / 2, atol=1e-12)


@pytest.mark.parametrize("term", [LocalToGlobal, MaskedPatches])
def test_a_term_says_which_field_it_lacks(term: type[Distilled], learner: Learner, batch: Batch) -> None:
    made = term(32, HEAD, weight=1.0, start=0.0).double()
    few = {key: value for key, value in batch.items() if key not in ("global", "mask_indices", "local")}
    with pytest.raises(KeyError, match="an objective reads"):
        made(Encoded(learner.model, few, learner.teacher))


def test_never_is_a_start_too(small: Small) -> None:
    recipe = small("siglip2", distill_start=1.0)
    learner = Learner(Model.new(replace(recipe.architecture), 300), recipe.objectives)
    assert learner.activate(0.999) == {"sigmoid", "caption"}


def test_a_number_that_is_none_does_not_stay_in_the_mean_of_the_information() -> None:
    term = LocalToGlobal(4, HeadShape(8, 4, 1024), weight=1.0, start=0.0)
    for information in (0.5, float("nan"), 0.3):
        notes = {"teacher_entropy": 5.0, "teacher_information": information}
        term.health({f"local_to_global/{name}": torch.tensor(x) for name, x in notes.items()})
    assert term.mean_information == pytest.approx(0.9 * 0.5 + 0.1 * 0.3)
