"""Captions rewarded by CIDEr-D: what is drawn, what it earns, the gradient, and what a run keeps of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHAPE, Small, collate, draw, exact
from safetensors.torch import load_file
from test_resume import assert_same_end, cut_short
from torch import Tensor

from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.captions import Captions, Ids
from opensiglip.data.fields.field import Field, Visit
from opensiglip.data.fields.references import NOTHING, SAMPLES, References
from opensiglip.data.loader import to_device
from opensiglip.data.text import TextPipeline
from opensiglip.evaluation.metrics.text import cider_d, words
from opensiglip.inference.generate import generate
from opensiglip.models.decoder import Decoder
from opensiglip.models.sizes import SHAPES
from opensiglip.objectives.base import Encoded
from opensiglip.objectives.self_critical import BUCKETS, END, SelfCritical, Words, bucket, without_dropout
from opensiglip.recipes import RECIPES, build_recipe
from opensiglip.training.learner import Learner
from opensiglip.training.run import train
from opensiglip.types import Batch


@pytest.fixture(params=["cappa", "locca"])
def built(request: pytest.FixtureRequest, small: Small, pipeline: TextPipeline) -> tuple[Any, Learner, SelfCritical]:
    """Recipe, learner and objective in float64, with a decoder that is sure of some tokens and drops much."""
    torch.manual_seed(0)
    recipe = small(request.param, cider_weight=1.0, decoder_dropout=0.5)
    learner = Learner.new(recipe, pipeline).double()
    objective = learner.objectives["self_critical"]
    assert isinstance(objective, SelfCritical)
    objective.initialise(learner.model, 8, ())
    decoder = learner.model.decoder
    assert isinstance(decoder, Decoder)
    torch.nn.init.normal_(decoder.vocabulary.weight, std=0.2)
    torch.nn.init.constant_(decoder.vocabulary.bias[pipeline.policy.eos_id], 4.0)
    return recipe, learner, objective


def own_captions(batch: Batch) -> list[list[Ids]]:
    return [
        [tuple(token for token in ids if token != NOTHING) for ids in some if ids[0] != NOTHING]
        for some in batch["references"].tolist()
    ]


def worded(objective: SelfCritical, texts: list[list[Ids]]) -> list[list[Words]]:
    return [[objective.words(ids) for ids in some] for some in texts]


def with_second_caption(visit: Visit) -> Visit:
    captions = visit.example.captions
    more = replace(captions[0], text="a second caption of one image")
    return replace(visit, example=replace(visit.example, captions=(*captions, more)))


def count(objective: SelfCritical, learner: Learner, batch: Batch) -> None:
    """A step, whose images are counted then."""
    encoded = Encoded(learner.model, batch)
    with torch.no_grad():
        objective(encoded)
    objective.after_step(encoded.notes)


def test_the_field_holds_all_captions_of_the_language_and_a_number_for_each_token(
    visits: list[Visit], small: Small, pipeline: TextPipeline
) -> None:
    recipe = small("cappa", cider_weight=1.0)
    some = [with_second_caption(visits[0]), visits[1], replace(visits[2], caption=None)]
    batch = collate(recipe, draw(recipe, some, pipeline), pipeline)
    own = own_captions(batch)
    for visit, texts, number in zip(some[:2], own[:2], (2, 1), strict=True):
        assert visit.caption is not None
        said = [visit.caption.text, "a second caption of one image"][:number]
        assert [pipeline.text(ids[:-1]).strip() for ids in texts] == [text.strip() for text in said]
        assert all(ids[-1] == pipeline.policy.eos_id for ids in texts)
    assert own[2] == []
    uniforms = batch["uniforms"]
    assert uniforms.shape == (3, SAMPLES, pipeline.policy.length) and uniforms.dtype == torch.float64
    assert float(uniforms.min()) >= 0 and float(uniforms.max()) < 1 and len(uniforms.unique()) == uniforms.numel()


def test_a_token_falls_where_its_number_does_among_the_probabilities(
    built: tuple[Any, Learner, SelfCritical], visits: list[Visit], pipeline: TextPipeline
) -> None:
    recipe, learner, objective = built
    batch = exact(collate(recipe, draw(recipe, visits[:3], pipeline), pipeline))
    decoder: Any = learner.model.decoder.eval()  # type: ignore[union-attr]
    tokens = Encoded(learner.model, batch).image().tokens.detach()
    drawn = generate(decoder, tokens, [objective.begin] * 3, pipeline, uniforms=batch["uniforms"])
    assert len({len(ids) for ids in drawn}) > 1, "some end earlier"
    for place in (0, 4, 7, 13):
        image, number = divmod(place, SAMPLES)
        text = [*objective.begin]
        for at, token in enumerate(drawn[place]):
            ids = torch.tensor([[pipeline.policy.pad_id, *text]])
            zero = torch.zeros_like(ids)
            hidden = decoder(ids, torch.arange(ids.shape[1])[None], zero, zero.bool(), tokens[image : image + 1])
            shares = decoder.vocabulary(hidden[:, -1])[0].softmax(-1).cumsum(-1)
            assert token == int((shares <= batch["uniforms"][image, number, at]).sum())
            text.append(token)


def test_a_device_without_float64_draws_the_same_captions(
    built: tuple[Any, Learner, SelfCritical],
    visits: list[Visit],
    pipeline: TextPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to numbers that fall within float32's rounding of the end of a token's share."""
    recipe, learner, objective = built
    batch, cpu = exact(collate(recipe, draw(recipe, visits[:3], pipeline), pipeline)), torch.device("cpu")
    decoder: Any = learner.model.decoder.eval()  # type: ignore[union-attr]
    image = Encoded(learner.model, batch).image()
    wanted = objective.sample(decoder, image, batch["uniforms"])
    monkeypatch.setattr("opensiglip.float64.widest", lambda device: torch.float32)
    uniforms = to_device(batch, cpu)["uniforms"]
    assert uniforms.dtype == torch.float32 and objective.sample(decoder, image, uniforms) == wanted


def test_the_reward_is_cider_d_of_the_counted_images(
    built: tuple[Any, Learner, SelfCritical], visits: list[Visit], pipeline: TextPipeline
) -> None:
    recipe, learner, objective = built
    batch = exact(collate(recipe, draw(recipe, visits[:8], pipeline), pipeline))
    ids = own_captions(batch)
    texts = worded(
        objective,
        [
            [some[0], (*some[0][:3], *ids[0][0][1:]), (7, 7, 7), some[0][:-1], ids[row - 1][0]]
            for row, some in enumerate(ids)
        ],
    )
    own = worded(objective, ids)
    nothing, _ = objective.compare(texts, own)
    assert not nothing.any(), "before anything is counted"
    count(objective, learner, batch)
    rewards, found = objective.compare(texts, own)
    for column in range(SAMPLES):
        known = cider_d([some[column] for some in texts], own)
        np.testing.assert_allclose(rewards[:, column].numpy(), known, rtol=1e-5)
    assert float(rewards[0, 0]) > 5 and float(rewards[:, 3].max()) < float(rewards[:, 0].max()), "an end is missed"
    grams = {bucket(gram) for some in own for text in some for gram in zip(text, text[1:], strict=False)}
    assert {int(place) for place in found.nonzero()} >= grams and int(found[bucket((END,))]) == 8


def test_rewards_compare_the_words_that_evaluation_compares(
    built: tuple[Any, Learner, SelfCritical], pipeline: TextPipeline
) -> None:
    """Without punctuation, and whole words where a tokenizer has parts of them; the end stands for itself."""
    _, _, objective = built
    text = "Two red foxes, jumping over a parallelogram ."
    ids = pipeline.ids(f" {text}")
    assert len(ids) > 8, "the last word is in parts"
    expected = ("two", "red", "foxes", "jumping", "over", "a", "parallelogram")
    assert objective.words(ids) == expected == tuple(words(pipeline.canonical(text)))
    assert objective.words((*ids, pipeline.policy.eos_id)) == (*expected, END)
    assert objective.words((pipeline.policy.eos_id,)) == (END,) and objective.words(()) == ()


def test_how_rare_an_n_gram_is_is_counted_over_all_steps(
    built: tuple[Any, Learner, SelfCritical], visits: list[Visit], pipeline: TextPipeline
) -> None:
    """After two steps of eight images rewards are those of a corpus of sixteen."""
    recipe, learner, objective = built
    own = list[list[Words]]()
    for some in (visits[:8], visits[8:]):
        batch = exact(collate(recipe, draw(recipe, some, pipeline), pipeline))
        count(objective, learner, batch)
        own += worded(objective, own_captions(batch))
    texts = [(*own[row - 1][0][:4], "and", "and", *some[0][:-1]) for row, some in enumerate(own)]
    rewards = torch.cat(
        [objective.compare([[one] * SAMPLES for one in texts[at : at + 8]], own[at : at + 8])[0] for at in (0, 8)]
    )
    known = cider_d(texts, own)
    np.testing.assert_allclose(rewards[:, 0].numpy(), known, rtol=1e-5)
    assert min(known) > 0.1


def test_texts_end_where_a_steps_texts_do(
    built: tuple[Any, Learner, SelfCritical], visits: list[Visit], pipeline: TextPipeline
) -> None:
    """With numbers for three tokens a text is cut behind the third, and has no eos that was not drawn."""
    recipe, learner, objective = built
    batch = exact(collate(recipe, draw(recipe, visits[:3], pipeline), pipeline))
    decoder: Any = learner.model.decoder.eval()  # type: ignore[union-attr]
    image, uniforms = Encoded(learner.model, batch).image(), batch["uniforms"]
    cut = [[ids[:3] for ids in some] for some in objective.sample(decoder, image, uniforms)]
    assert objective.sample(decoder, image, uniforms[..., :3]) == cut
    assert any(len(ids) == 3 and ids[-1] != pipeline.policy.eos_id for some in cut for ids in some)


def test_references_end_as_texts_do_whatever_their_length_and_the_padding(
    visits: list[Visit], pipeline: TextPipeline
) -> None:
    """Also where a tokenizer pads with its end, as SigLIP's does."""
    long = replace(visits[0].example.captions[0], text="a fox " * 100)
    first = replace(visits[0], caption=long, example=replace(visits[0].example, captions=(long,)))
    for pad_id in (pipeline.policy.pad_id, pipeline.policy.eos_id):
        own = TextPipeline(pipeline.tokenizer, replace(pipeline.policy, pad_id=pad_id))
        some, length = [first, visits[1]], own.policy.length
        batch = References().collate([References().draw(visit, np.random.default_rng(0), own) for visit in some], own)
        texts = own_captions(batch)
        assert texts[0] == [(*own.ids(f" {long.text}")[: length - 1], own.policy.eos_id)]
        assert len(texts[0][0]) == length and texts[1][0][-1] == own.policy.eos_id


def test_references_are_tokenised_as_the_captions_that_the_decoder_is_trained_on(
    visits: list[Visit], pipeline: TextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A space before the first word counts for byte-level tokenizers, though not for this one."""
    asked, ids = list[str](), TextPipeline.ids
    monkeypatch.setattr(TextPipeline, "ids", lambda self, text: asked.append(text) or ids(self, text))
    fields: list[Field] = [Captions(prefix=False, boxes=BoxFormat()), References()]
    for field in fields:
        field.draw(visits[0], np.random.default_rng(0), pipeline)
    assert len(asked) == 2 and asked[0] == asked[1]


@pytest.mark.parametrize(("name", "prefix"), [("cappa", False), ("locca", True), ("captioner", False)])
def test_a_recipes_flags_reach_the_term_and_its_field(name: str, prefix: bool) -> None:
    recipe = build_recipe(RECIPES[name], {"cider_weight": 2.0, "cider_start": 0.5})
    [term] = [one for one in recipe.objectives if isinstance(one, SelfCritical)]
    [field] = [one for one in recipe.fields if isinstance(one, References)]
    assert (term.weight, term.start, term.prefix, field.start) == (2.0, 0.5, prefix, 0.5)


@pytest.mark.parametrize("training", [True, False])
def test_a_decoder_is_left_as_it_was(training: bool) -> None:
    decoder = torch.nn.Sequential(torch.nn.Dropout()).train(training)
    with without_dropout(decoder):
        assert not decoder[0].training
    assert decoder.training == decoder[0].training == training


def test_the_gradient_is_the_advantage_times_that_of_the_likelihood(
    built: tuple[Any, Learner, SelfCritical], uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe, learner, objective = built
    some = [with_second_caption(uneven[0]), *uneven[1:]]
    batch = exact(collate(recipe, draw(recipe, some, pipeline), pipeline))
    count(objective, learner, batch)
    learner.train()
    encoded = Encoded(learner.model, batch)
    loss, again = objective(encoded), objective(Encoded(learner.model, batch))
    assert torch.equal(loss, again), "nothing is dropped"
    decoder: Any = learner.model.decoder
    assert decoder.training and decoder.blocks[0].training
    decoder.eval()
    image = Encoded(learner.model, batch).image()
    texts = objective.sample(decoder, image, batch["uniforms"])
    rewards, _ = objective.compare(worded(objective, texts), worded(objective, own_captions(batch)))
    plain = torch.zeros((), dtype=torch.float64)
    for row, some in enumerate(texts):
        for column, ids in enumerate(some):
            others = [float(rewards[row, other]) for other in range(SAMPLES) if other != column]
            advantage = float(rewards[row, column]) - sum(others) / len(others)
            plain = (
                plain - advantage * log_likelihood(decoder, image.tokens[row], objective.begin, ids, pipeline) / SAMPLES
            )
    weights = [learner.model.vision.tower.post_layernorm.weight, decoder.position, decoder.vocabulary.weight]
    gaps = [
        (x - y).abs().max() / y.abs().max()
        for x, y in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(plain, weights), strict=True)
    ]
    assert float(rewards.abs().max()) > 0 and max(gaps) < 1e-5
    assert float(encoded.notes["self_critical/reward"]) == pytest.approx(float(rewards.mean(1).sum()) / 5)
    assert int(objective.live(batch)) == 5 and not rewards[[2, 3, 5]].any()


def log_likelihood(decoder: Any, memory: Tensor, begin: Ids, ids: Ids, pipeline: TextPipeline) -> Tensor:
    inputs = torch.tensor([[pipeline.policy.pad_id, *begin, *ids[:-1]]])
    zero = torch.zeros_like(inputs)
    hidden = decoder(inputs, torch.arange(inputs.shape[1])[None], zero, zero.bool(), memory[None])[0, len(begin) :]
    found: Tensor = decoder.vocabulary(hidden).log_softmax(-1)[range(len(ids)), list(ids)].sum()
    return found


def test_parts_add_up_to_the_whole_batch(
    built: tuple[Any, Learner, SelfCritical], uneven: list[Visit], pipeline: TextPipeline
) -> None:
    recipe, learner, objective = built
    drawn = draw(recipe, uneven, pipeline)
    count(objective, learner, exact(collate(recipe, drawn, pipeline)))
    found: dict[int, tuple[float, Tensor, Tensor]] = {}
    for size in (8, 2):
        notes, losses = [], []
        for at in range(0, 8, size):
            encoded = Encoded(learner.model, exact(collate(recipe, drawn[at : at + size], pipeline)))
            losses.append(objective(encoded))
            notes.append(encoded.notes["self_critical/found"])
        decoder: Any = learner.model.decoder
        loss = torch.stack(losses).sum()
        [gradient] = torch.autograd.grad(loss, [decoder.position])
        found[size] = loss.item(), gradient, torch.stack(notes).mean(0) * (8 / size)
    assert found[2][0] == pytest.approx(found[8][0], abs=1e-12) and abs(found[8][0]) > 1e-3
    torch.testing.assert_close(found[2][1], found[8][1], rtol=1e-9, atol=1e-12)
    assert torch.equal(found[2][2], found[8][2]) and found[8][2][-1] == 5
    assert float(objective.images[bucket((END,))]) == 1, "of the five images that have captions all"
    objective.after_step({"self_critical/found": torch.zeros(BUCKETS + 1)})
    assert objective.steps == 1, "a step without captions is not counted"
    assert len({bucket((END,)), bucket((END, "a")), bucket(("a",)), bucket(("a", END))}) == 4, (
        "END is a word like others"
    )


def test_a_run_earns_more_and_is_resumed_bit_for_bit(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SHAPE)
    settings: dict[str, Any] = {"size": "tiny", "resolution": 32, "cider_weight": 1.0, "batch_size": 8, "workers": 0}
    settings |= {"steps": 6, "save_every": 3, "held_out": 0, "precision": "fp32", "memory_check": False}
    settings |= {"data": folder, "vocabulary": 300, "cider_start": 1 / 3}
    train("cappa", out=tmp_path / "straight", **settings)
    cut_short(4, lambda: train("cappa", out=tmp_path / "cut", **settings))
    train("cappa", out=tmp_path / "cut", resume=True, **settings)
    assert_same_end(tmp_path / "cut", tmp_path / "straight")
    saved = load_file(tmp_path / "cut/checkpoints/step-00000006/learner.safetensors")
    assert saved["objectives.self_critical.steps"].item() == 4, "from a third of six steps on"
    assert saved["objectives.self_critical.images"].shape == (BUCKETS,)
