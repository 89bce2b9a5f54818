"""SigLIP 2's loss for other people's loops: plain tensors, and transformers' own Trainer."""

import math
import os
import re
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import SIDE, Small, collate, draw
from forkserver import start_ranks
from torch import Tensor
from transformers import (
    AutoModel,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    Trainer,
    TrainingArguments,
)

from opensiglip import PreTrainingCallback, PreTrainingCollator, SigLIP2Loss, SiglipForPreTraining, TextPipeline
from opensiglip.data.example import Example, Source
from opensiglip.data.fields.field import Visit
from opensiglip.data.loader import to_device
from opensiglip.models.model import Model
from opensiglip.models.sizes import HeadShape
from opensiglip.objectives.base import Encoded
from opensiglip.optim import adamw
from opensiglip.training.learner import Learner, denominators

HEAD = {"hidden": 32, "bottleneck": 16, "prototypes": 48}
STEPS = 10


def host(pipeline: TextPipeline, kind: str = "siglip") -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(pipeline), "max_position_embeddings": pipeline.policy.length, "projection_size": 32}
    if kind == "siglip":
        config = SiglipConfig(vision_config=shape | {"image_size": SIDE, "patch_size": 8}, text_config=shape | words)
        model: PreTrainedModel = SiglipModel(config)
    else:
        config2 = Siglip2Config(vision_config=shape | {"num_patches": 16, "patch_size": 8}, text_config=shape | words)
        model = Siglip2Model(config2)
    torch.nn.init.constant_(model.logit_scale, math.log(10))
    torch.nn.init.constant_(model.logit_bias, -2.0)
    return model


def rows(scenes: Source, count: int = 16) -> list[Example]:
    return [scenes.example(index, "en") for index in range(count)]


def trainer(
    model: SiglipForPreTraining, data: list[Any], collator: PreTrainingCollator, folder: Path, **changes: Any
) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "report_to": [],
        "logging_steps": 1,
        "remove_unused_columns": False,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    callbacks = settings.pop("callbacks", changes.pop("callbacks", [PreTrainingCallback(collator)]))
    optimizers = changes.pop("optimizers", (None, None))
    arguments = TrainingArguments(str(folder), **settings | changes)
    return Trainer(
        model, arguments, train_dataset=data, data_collator=collator, callbacks=callbacks, optimizers=optimizers
    )


@pytest.fixture
def collator(pipeline: TextPipeline) -> PreTrainingCollator:
    return PreTrainingCollator(pipeline, resolution=SIDE, patch_size=8)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_stock_trainer_trains_all_four_terms_saves_and_reloads(
    kind: str, pipeline: TextPipeline, collator: PreTrainingCollator, scenes: Source, tmp_path: Path
) -> None:
    model = SiglipForPreTraining.wrap(host(pipeline, kind), pipeline, head=HEAD)
    this = trainer(model, rows(scenes), collator, tmp_path)
    this.train()
    log = [row for row in this.state.log_history if "loss" in row]
    assert len(log) == STEPS and log[-1]["loss_caption"] < log[0]["loss_caption"]
    early, late = set(log[7]), set(log[8])
    assert {"loss_sigmoid", "loss_caption"} <= early
    assert late - early == {"loss_local_to_global", "loss_masked_patches"}
    weights = {"sigmoid": 1, "caption": 1, "local_to_global": 0.25, "masked_patches": 0.0625}
    assert log[-1]["loss"] == pytest.approx(sum(log[-1][f"loss_{k}"] * w for k, w in weights.items()), rel=1e-4)

    held = {id(p) for group in this.optimizer.param_groups for p in group["params"]}
    learner = model.learner
    slow = {name for name, _ in learner.named_parameters() if "teacher." in name or "slow_head." in name}
    for name, parameter in learner.named_parameters():
        assert (id(parameter) in held) == (name not in slow), name
    for name, parameter in learner.objectives.named_parameters():
        if "slow_head" not in name:
            state = this.optimizer.optimizer.state[parameter]
            assert float(state["step"]) == 2, "fresh when it began, then taught in both last steps"
    assert learner.teacher is not None
    assert not torch.equal(*(next(m.parameters()) for m in (learner.teacher.copy, learner.model.vision)))

    model.save_pretrained(tmp_path / "saved")
    back = SiglipForPreTraining.from_pretrained(tmp_path / "saved")
    states = (model.state_dict(), back.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    torch.manual_seed(0)
    batch = collator(rows(scenes, 4))
    with torch.no_grad():
        losses = [m.eval()(**batch).loss for m in (model, back)]
    back.progress = model.progress
    back.learner.active = model.learner.active
    with torch.no_grad():
        assert torch.equal(model(**batch).loss, back(**batch).loss), losses

    model.export(tmp_path / "plain")
    plain = AutoModel.from_pretrained(tmp_path / "plain")
    assert type(plain) is type(host(pipeline, kind))
    assert torch.equal(plain.logit_scale, learner.model.logit_scale)
    assert Model.from_pretrained(tmp_path / "plain").decoder is not None


def test_its_loss_is_the_recipes(small: Small, visits: list[Visit], pipeline: TextPipeline) -> None:
    recipe = small("siglip2")
    batch = collate(recipe, draw(recipe, visits[:6], pipeline), pipeline)
    model = SiglipForPreTraining.wrap(host(pipeline), pipeline, head=HEAD).eval()
    model.set_progress(1.0)
    output = model(**batch)
    learner = Learner(model.learner.model, list(model.learner.objectives.values()))
    moved = to_device(batch, torch.device("cpu"))
    losses, _ = learner(moved, denominators(learner, [moved]).float())
    assert float(output.loss.detach()) == pytest.approx(float(losses["loss"].detach()), abs=1e-6)
    assert set(output) == {"loss", *(f"loss_{o.name}" for o in recipe.objectives)}


def test_plain_tensors_give_the_learners_loss_and_gradient(
    small: Small, visits: list[Visit], pipeline: TextPipeline
) -> None:
    recipe = small("siglip2")
    batch = to_device(collate(recipe, draw(recipe, visits[:6], pipeline), pipeline), torch.device("cpu"))
    torch.manual_seed(0)
    model = Model.new(recipe.architecture, len(pipeline))
    loss = SigLIP2Loss(32, head=HeadShape(**HEAD))
    learner = Learner(model, list(loss.objectives.values()))
    expected, _ = learner(batch, denominators(learner, [batch]).float())
    expected["loss"].backward()
    slopes = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()

    encoded = Encoded(model, batch, learner.teacher)
    given: dict[str, Any] = {
        "image_embeds": encoded.image().pooled,
        "text_embeds": encoded.text().pooled,
        "logit_scale": model.logit_scale,
        "logit_bias": model.logit_bias,
        "patch_tokens": encoded.image().tokens,
        "decoder": model.decoder,
        "captions": {name: batch[name] for name in ("inputs", "targets", "positions", "segments", "full", "weights")}
        | {name: batch[name] for name in ("sequences", "scored", "real")},
        "local_embeds": encoded.image("local").pooled.unflatten(0, (6, -1)),  # type: ignore[union-attr]
        "teacher_embeds": encoded.teacher("global").pooled,
        "masked_tokens": encoded.masked("global", loss.mask_token).tokens,
        "teacher_tokens": encoded.teacher("global").tokens,
        "mask_indices": batch["mask_indices"],
    }
    terms = loss(progress=0.9, **given)
    assert terms.keys() == expected.keys()
    assert all(torch.allclose(terms[name], value, atol=1e-6) for name, value in expected.items())
    terms["loss"].backward()
    for name, parameter in learner.named_parameters():
        if name in slopes:
            assert torch.allclose(parameter.grad, slopes[name], atol=1e-6), name

    assert set(loss(progress=0.5, **given)) == {"sigmoid", "caption", "loss"}
    for name in given:
        begun = "local_to_global" if name in ("local_embeds", "teacher_embeds") else ""
        with pytest.raises(ValueError, match=f"{begun}.*needs {name}"):
            loss(progress=0.9, **given | {name: None})
    before = loss.objectives["local_to_global"].centre.clone()
    loss(progress=0.9, **given)
    loss.after_step()
    assert not torch.equal(before, loss.objectives["local_to_global"].centre)


def test_what_would_be_silently_wrong_is_refused(
    pipeline: TextPipeline, collator: PreTrainingCollator, scenes: Source, tmp_path: Path
) -> None:
    def go(**changes: Any) -> None:
        model = SiglipForPreTraining.wrap(host(pipeline), pipeline, head=HEAD)
        trainer(model, rows(scenes), collator, tmp_path, **changes).train()

    with pytest.raises(RuntimeError, match="PreTrainingCallback"):
        go(callbacks=[])
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        go(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="remove_unused_columns"):
        callback = PreTrainingCallback(collator)
        model = SiglipForPreTraining.wrap(host(pipeline), pipeline, head=HEAD)
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
        callback.on_train_begin(arguments, None, None, model=model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not Linear"):
        SiglipForPreTraining.wrap(torch.nn.Linear(1, 1), pipeline)  # type: ignore[arg-type]
    zero = host(pipeline)
    torch.nn.init.zeros_(zero.logit_scale)
    torch.nn.init.zeros_(zero.logit_bias)
    with pytest.warns(UserWarning, match="logit_bias"):
        SiglipForPreTraining.wrap(zero, pipeline, head=HEAD)


def test_a_term_that_is_not_finite_stops_training(
    pipeline: TextPipeline, collator: PreTrainingCollator, scenes: Source, tmp_path: Path
) -> None:
    """Trainer would log it as 0."""
    model = SiglipForPreTraining.wrap(host(pipeline), pipeline, head=HEAD)
    torch.nn.init.constant_(model.learner.model.logit_bias, math.nan)
    with pytest.raises(FloatingPointError, match="sigmoid"):
        trainer(model, rows(scenes), collator, tmp_path).train()


def test_both_trainers_have_one_optimizer_and_the_callback_warns_of_decay_where_there_is_none(
    pipeline: TextPipeline, collator: PreTrainingCollator, scenes: Source, tmp_path: Path
) -> None:
    model = SiglipForPreTraining.wrap(host(pipeline), pipeline, head=HEAD)
    optimizer = adamw(model, 1e-3, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, rest = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    ours = adamw(model.learner, 1e-3, 0.1)
    assert [len(group["params"]) for group in ours.param_groups] == [len(decayed), len(rest)]
    assert [(group["weight_decay"], group["betas"]) for group in optimizer.param_groups] == [
        (0.1, (0.9, 0.95)),
        (0.0, (0.9, 0.95)),
    ]
    spared = ("logit_scale", "logit_bias", "embedding.weight", "head.probe", "decoder.position", "prototypes", "token")
    for word in spared:
        assert any(name.endswith(word) for name in rest), word
    assert not any(name.endswith(spared) and "patch_embedding" not in name for name in decayed)

    this = trainer(model, rows(scenes), collator, tmp_path, max_steps=1, weight_decay=0.1)
    with pytest.warns(UserWarning, match=r"weight decay applies to .* and \d+ more .* optimizers=\(opensiglip.optim"):
        this.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "'pin_memory'")
        collator.progress.fill_(0.0)
        trainer(model, rows(scenes), collator, tmp_path, max_steps=1, optimizers=(optimizer, None)).train()


def test_rows_without_text_are_neither_positives_nor_negatives_of_plain_tensors() -> None:
    loss, generator = SigLIP2Loss(16, caption=0.0, distillation=0.0), torch.Generator().manual_seed(0)
    images, texts = (torch.randn(6, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    has_text = torch.tensor([True, False, True, True, False, True])
    shared = {"logit_scale": torch.tensor([2.3]).double(), "logit_bias": torch.tensor([-1.1]).double()}
    found = loss(progress=0.0, image_embeds=images, text_embeds=texts, has_text=has_text, **shared)["sigmoid"]
    x, y = (torch.nn.functional.normalize(side[has_text], dim=-1) for side in (images, texts))
    logits = x @ y.T * shared["logit_scale"].exp() + shared["logit_bias"]
    signs = 2 * torch.eye(4, dtype=torch.float64) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum() / 4
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_the_heads_averages_start_as_copies_and_move_with_the_momentum() -> None:
    loss = SigLIP2Loss(16, caption=0.0, head=HeadShape(**HEAD))
    heads = [(term.head, term.slow_head.copy) for name, term in loss.objectives.items() if name != "sigmoid"]
    for head, average in heads:
        torch.nn.init.constant_(head.layers[0].weight, 1.0)
        assert not torch.equal(head.layers[0].weight, average.layers[0].weight)
    loss.begin()
    for head, average in heads:
        assert torch.equal(head.layers[0].weight, average.layers[0].weight)
        torch.nn.init.constant_(head.layers[0].weight, 3.0)
    loss.progress = 1.0
    names = ("local_to_global", "masked_patches")
    loss.notes = {f"{name}/centre": torch.full((48,), 2.0) for name in names}
    loss.after_step(momentum=0.75)
    for _, average in heads:
        assert torch.allclose(average.layers[0].weight, torch.tensor(0.75 * 1 + 0.25 * 3))
    for name in names:
        assert torch.allclose(loss.objectives[name].centre, torch.tensor(0.1 * 2.0)), "centres keep nine tenths"


def test_where_distillation_begins_the_teacher_is_the_student_of_that_moment(pipeline: TextPipeline) -> None:
    model = SiglipForPreTraining.wrap(host(pipeline), pipeline, head=HEAD)
    teacher, student = model.learner.teacher, model.learner.model.vision
    assert teacher is not None
    model.set_progress(0.5)
    torch.nn.init.constant_(next(student.parameters()), 0.5)
    assert not torch.equal(next(teacher.copy.parameters()), next(student.parameters()))
    model.set_progress(0.8)
    assert all(torch.equal(a, b) for a, b in zip(teacher.copy.parameters(), student.parameters(), strict=True))


def test_training_goes_on_from_trainers_checkpoint(
    pipeline: TextPipeline, collator: PreTrainingCollator, scenes: Source, tmp_path: Path
) -> None:
    """Stopped after the switch: what had begun does not begin again, so the teacher is not thrown away."""
    model = SiglipForPreTraining.wrap(host(pipeline), pipeline, head=HEAD)
    this = trainer(model, rows(scenes), collator, tmp_path, save_strategy="steps", save_steps=9)
    this.train()
    model = SiglipForPreTraining.wrap(host(pipeline), pipeline, head=HEAD)
    copied: list[float] = []
    plain = type(model.learner.teacher).update

    class Watched(type(model.learner.teacher)):  # type: ignore[misc]
        def update(self, momentum: float) -> None:
            copied.append(momentum)
            plain(self, momentum)

    model.learner.teacher.__class__ = Watched  # type: ignore[union-attr]
    again = trainer(model, rows(scenes), collator, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert copied == [model.config.momentum]


def test_rows_of_a_dataset_become_a_batch(pipeline: TextPipeline, scenes: Source) -> None:
    from torchvision.transforms.v2.functional import to_pil_image

    example = scenes.example(0, "en")
    region = example.regions[0]
    row = {
        "image": to_pil_image(example.image),
        "caption": example.captions[0].text,
        "regions": [{"bbox": list(region.bbox), "phrase": next(iter(region.phrases.values()))}],
    }
    collator = PreTrainingCollator(pipeline, resolution=SIDE, patch_size=8, parallel=0.0)
    torch.manual_seed(0)
    batch = collator([row, {"image": example.image, "captions": ["one", "two"]}])
    assert batch["sequences"].tolist() == [3, 1] and "global" not in batch
    assert torch.equal(batch["image"][0], example.image)
    collator.progress.fill_(0.75)
    assert "global" not in collator([row])
    collator.ahead = 0.05
    assert {"global", "local", "mask_indices"} <= set(collator([row])), "made a little before they are needed"


def work(rank: int, folder: str, model: SiglipForPreTraining, batches: list[dict[str, Tensor]]) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = deepcopy(model)  # what comes from the other process is shared with it
    step = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    model.set_progress(0.9)
    output = step(**batches[rank])
    output.loss.backward()
    torch.save({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, f"{folder}/{rank}")
    model.after_step()
    plain = SigLIP2Loss(32, caption=0.0, head=HeadShape(**HEAD))
    plain.progress = 1.0
    names = ("local_to_global", "masked_patches")
    plain.notes = {f"{name}/centre": torch.full((48,), float(rank)) for name in names}
    plain.after_step()
    torch.save(
        [[loss.objectives[name].centre for name in names] for loss in (model.learner, plain)], f"{folder}/c{rank}"
    )
    dist.barrier()
    os._exit(0)  # all is written: gloo's threads may wait for ever, at the end, for a rank that has gone


def test_two_ranks_see_each_others_negatives(
    pipeline: TextPipeline, small: Small, uneven: list[Visit], tmp_path: Path
) -> None:
    recipe = small("siglip2")
    drawn = draw(recipe, uneven, pipeline)
    model = SiglipForPreTraining.wrap(host(pipeline), pipeline, head=HEAD)
    batches = [collate(recipe, drawn[at : at + 4], pipeline) for at in (0, 4)]
    start_ranks(work, (str(tmp_path), model, batches), 2)
    model.set_progress(0.9)
    model(**collate(recipe, drawn, pipeline)).loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for rank in (0, 1):
        got = torch.load(tmp_path / str(rank))
        assert got.keys() == expected.keys()
        assert max(float((got[name] - value).abs().max()) for name, value in expected.items()) < 1e-4
    model.after_step()
    for rank in (0, 1):
        centres, plain = torch.load(tmp_path / f"c{rank}")
        for name, centre in zip(("local_to_global", "masked_patches"), centres, strict=True):
            assert torch.allclose(centre, model.learner.objectives[name].centre, atol=1e-6) and centre.any()
        assert all(torch.allclose(centre, torch.tensor(0.1 * 0.5)) for centre in plain), "the mean of 0 and 1, a tenth"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # Trainer's default, on machines without an accelerator
def test_the_examples_in_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "the-loss-alone.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(blocks):
        module = ModuleType(f"docs_example_{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(block, f"the-loss-alone.md, example {number + 1}", "exec"), module.__dict__)
