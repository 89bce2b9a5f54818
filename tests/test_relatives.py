"""SigLIP's relatives compute what theirs compute: losses and networks of CLIP, CoCa and PaLI, open_clip's weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import open_clip.loss
import peers
import pytest
import torch
import torch.nn.functional as F
from conftest import LENGTH, SIDE, Small, collate, draw, exact
from open_clip.coca_model import CoCa
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, TimmWrapperConfig, TimmWrapperModel

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.fields.captions import Target, pack
from opensiglip.data.fields.field import Visit
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.inference.generate import generate
from opensiglip.inference.predictor import load
from opensiglip.models.coca import Multimodal, Unimodal
from opensiglip.models.model import Model
from opensiglip.models.pali import PaliDecoder
from opensiglip.objectives.base import Encoded
from opensiglip.objectives.captioning import Answer, Continue
from opensiglip.objectives.contrastive import Softmax
from opensiglip.optim import adamw
from opensiglip.training.learner import Learner, denominators
from opensiglip.training.run import train
from opensiglip.types import Batch

WORDS, CONTEXT, START, EOS = 90, 12, 88, 89  # of a tiny open_clip model: start and end of text as in CLIP's tokenizer


def unit(count: int, seed: int = 0, width: int = 16) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_softmax_is_open_clips(count: int) -> None:
    image, text, scale = unit(count), unit(count, 1), torch.tensor(14.3)
    has_text = torch.ones(count, dtype=torch.bool)
    theirs = open_clip.loss.ClipLoss()(image, text, scale)
    ours = Softmax().compare([image, text, has_text], [scale[None]]) / count
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_an_example_without_a_text_is_no_candidate() -> None:
    image, text, scale = unit(6), unit(6, 1), torch.tensor([14.3])
    has_text = torch.tensor([True, False, True, True, False, True])
    among_all = Softmax().compare([image, text, has_text], [scale])
    alone = Softmax().compare([image[has_text], text[has_text], torch.ones(4, dtype=torch.bool)], [scale])
    torch.testing.assert_close(among_all, alone, rtol=1e-6, atol=0)


def test_the_temperature_is_clipped_after_the_step_and_may_come_back(small: Small) -> None:
    """Clamped in the loss its gradient would be 0 for ever; clipped as CLIP is, it can fall again."""
    learner = Learner(Model.new(small("clip").architecture, 50), [Softmax()])
    scale = learner.model.logit_scale
    assert scale.item() == pytest.approx(2.6593, abs=1e-4)  # log(1 / 0.07)
    with torch.no_grad():
        scale.fill_(6.0)
    learner.after_step({}, 0.5)
    assert scale.exp().item() == pytest.approx(100, rel=1e-5)
    image = unit(4)
    loss = Softmax().compare([image, image.roll(1, 0), torch.ones(4, dtype=torch.bool)], [scale.exp()])
    (slope,) = torch.autograd.grad(loss, scale)
    assert slope > 1


def test_no_softmax_feels_a_bias_so_none_is_trained(small: Small) -> None:
    for name in ("clip", "lit", "coca"):
        recipe = small(name)
        model = Model.new(recipe.architecture, 50)
        assert not model.logit_bias.requires_grad and model.logit_bias.item() == 0
        torch.nn.init.constant_(model.logit_bias, -10.0)  # as a SigLIP brings it
        recipe.objectives[0].initialise(model, 64, {"logit_bias"})
        assert model.logit_bias.item() == 0


# open_clip's CoCa


def theirs(pooling: Any, width: int = 32, embed: int = 32) -> CoCa:
    """A CoCa of open_clip's with random weights; True is the pooling of the released ones."""
    torch.manual_seed(0)
    text = dict(context_length=CONTEXT, vocab_size=WORDS, width=embed, heads=embed // 8, layers=2)
    model = CoCa(
        embed_dim=embed,
        vision_cfg=dict(
            image_size=32,
            layers=2,
            width=width,
            head_width=8,
            patch_size=8,
            attentional_pool=pooling,
            attn_pooler_queries=6,
            attn_pooler_heads=4,
            output_tokens=True,
        ),
        text_cfg=dict(**text, embed_cls=True, output_tokens=True),
        multimodal_cfg=dict(**text),
    )
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.2)  # theirs is left as memory was
    for name, parameter in model.named_parameters():  # norms and biases that say something
        if parameter.ndim == 1 and name != "logit_scale":
            torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.2)
    return model.eval()


def inputs() -> tuple[Tensor, Tensor]:
    """Images in [0, 1], and texts of 3 to 12 tokens: start, words, end, padding."""
    text = torch.zeros(4, CONTEXT, dtype=torch.int64)
    for row, size in enumerate((3, 7, 11, 12)):
        text[row, :size] = torch.randint(1, START, (size,), generator=torch.Generator().manual_seed(row))
        text[row, 0], text[row, size - 1] = START, EOS
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(9)), text


def folder_of(model: CoCa, pooling: Any, folder: Path) -> Path:
    """The model as open_clip's hub folders are: config, safetensors, tokenizer."""
    heads = {"heads": model.text.width // 8}
    vision = {"width": model.visual.conv1.out_channels, "head_width": 8, "attn_pooler_heads": 4}
    config = {"vision_cfg": vision | {"attentional_pool": pooling}, "text_cfg": heads, "multimodal_cfg": heads}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    peers.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("pooling", "width", "embed"), [(True, 32, 24), ("cascade", 32, 32), ("parallel", 32, 32)])
def test_open_clips_coca_gives_its_embeddings_logits_and_losses(
    pooling: Any, width: int, embed: int, tmp_path: Path
) -> None:
    reference = theirs(pooling, width, embed)
    model = Pretrained.open(folder_of(reference, pooling, tmp_path)).model
    images, text = inputs()
    mean, std = model.vision.image.mean, model.vision.image.std
    with torch.no_grad():
        said = reference((images - mean) / std, text)
        said["image_features"] = said["image_features"].flatten(1)  # with two poolers theirs is [B, 1, D]
        image, words = model.vision(images * 2 - 1), model.text(text[:, 1:])
        assert isinstance(model.decoder, Multimodal)
        hidden = model.decoder.go_on(words.tokens[:, :-1], image.tokens)
        logits = model.decoder.vocabulary(hidden)
        close = dict(rtol=0, atol=1e-4)
        torch.testing.assert_close(F.normalize(image.pooled, dim=-1), said["image_features"], **close)
        torch.testing.assert_close(F.normalize(words.pooled, dim=-1), said["text_features"], **close)
        torch.testing.assert_close(logits, said["logits"], **close)
        assert said["logits"].std() > 0.01 and said["text_features"].std(0).max() > 0.01
        losses = open_clip.loss.CoCaLoss(2.0, 1.0)(
            said["image_features"], said["text_features"], said["logits"], said["labels"], said["logit_scale"]
        )
        encoded = Encoded(model, {"image": images * 2 - 1, "text": text[:, 1:], "has_text": torch.ones(4).bool()})
        contrastive = Softmax().compare(*Softmax().features(encoded)) / 4
        torch.testing.assert_close(contrastive, losses[0], **close)
        real = (text[:, 1:] != 0).flatten().nonzero()[:, 0]
        # open_clip's caption loss is the mean over all tokens, ours over each text's first.
        told = {"text_scored": real, "text_weights": torch.full((4, CONTEXT - 1), 2 / len(real))}
        caption = Continue()(Encoded(model, encoded.batch | told))
        torch.testing.assert_close(caption, losses[1], **close)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    folder = folder_of(theirs("cascade"), "cascade", tmp_path)
    whole = load_file(folder / "open_clip_model.safetensors")
    for state, said in (
        ({"visual.proj": torch.zeros(3, 3)}, "not hold the weights of an open_clip CoCa"),
        ({k: v for k, v in whole.items() if k != "visual.ln_pre.bias"}, "has no vision.image.tower.pre_layrnorm.bias"),
    ):
        save_file(state, folder / "open_clip_model.safetensors")
        with pytest.raises(UserError, match=said):
            Pretrained.open(folder)
    save_file(whole | {"visual.more": torch.zeros(3)}, folder / "open_clip_model.safetensors")
    with pytest.warns(UserWarning, match="has visual.more, which its networks have no place for; left out"):
        Pretrained.open(folder)
    save_file(whole, folder / "open_clip_model.safetensors")
    config = json.loads((folder / "open_clip_config.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config["model_cfg"] | {"quick_gelu": True}}))
    with pytest.raises(UserError, match="another activation"):
        Pretrained.open(folder)


def test_a_run_starts_from_open_clips_coca_and_load_reads_it(folder: str, tmp_path: Path) -> None:
    (tmp_path / "coca").mkdir()
    reference = theirs(True, 32, 24)
    place = str(folder_of(reference, True, tmp_path / "coca"))
    shared: dict[str, Any] = {"steps": 1, "lr": 1e-12, "batch_size": 8, "workers": 0, "held_out": 0}
    shared["memory_check"] = False
    train("coca", data=[folder], out=tmp_path / "run", init=place, **shared)
    trained, began = (Pretrained.open(name).model for name in (tmp_path / "run/model", place))
    assert all(torch.allclose(x, began.state_dict()[name], atol=1e-6) for name, x in trained.state_dict().items())
    with pytest.raises(UserError, match="those of the recipe coca"):
        train("siglip", data=[folder], out=tmp_path / "other", init=place, **shared)
    images, _ = inputs()
    for name in (place, tmp_path / "run"):
        seen = load(name)
        pixels = (images * 255).round().to(torch.uint8)
        with torch.no_grad():
            mean, std = began.vision.image.mean, began.vision.image.std
            known = reference.encode_image((pixels / 255 - mean) / std)
            row = torch.zeros(1, CONTEXT, dtype=torch.int64)
            word = seen.pipeline.ids("a fox")
            row[0, : len(word) + 2] = torch.tensor([START, *word, EOS])
            told = reference.encode_text(row)
        torch.testing.assert_close(seen.embed_images(list(pixels)), known, rtol=0, atol=1e-4)
        torch.testing.assert_close(seen.embed_texts(["a fox"]), told, rtol=0, atol=1e-4)
        assert len(seen.caption(list(pixels))) == len(pixels)


def test_loaded_weights_are_saved_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "coca").mkdir()
    model = Pretrained.open(folder_of(theirs(True, 32, 24), True, tmp_path / "coca")).model
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path).eval()
    images, text = inputs()
    with torch.no_grad():
        for a, b in ((model.vision(images), again.vision(images)), (model.text(text[:, 1:]), again.text(text[:, 1:]))):
            assert torch.equal(a.pooled, b.pooled) and torch.equal(a.tokens, b.tokens)
    (tmp_path / "beside.safetensors").unlink()
    with pytest.raises(UserError, match="beside.safetensors is missing"):
        Model.from_pretrained(tmp_path)


# Our own CoCa


@pytest.fixture(scope="module")
def batch(small: Small, visits: list[Visit], pipeline: TextPipeline) -> Batch:
    recipe = small("coca")
    return exact(collate(recipe, draw(recipe, visits[:4], pipeline), pipeline))


def coca(small: Small, pipeline: TextPipeline, **keywords: Any) -> Model:
    torch.manual_seed(0)
    model = Model.new(small("coca", **keywords).architecture, len(pipeline)).double().eval()
    assert isinstance(model.decoder, Multimodal)
    torch.nn.init.normal_(model.decoder.vocabulary.weight)
    return model


def test_a_word_sees_those_before_it_alone_in_both_halves(small: Small, pipeline: TextPipeline, batch: Batch) -> None:
    model, text = coca(small, pipeline), batch["text"]
    assert isinstance(model.decoder, Multimodal)
    other = text.clone()
    other[:, 3] = (other[:, 3] + 7) % 300 + 2
    memory = model.vision(batch["image"]).tokens
    a, b = (model.text(ids) for ids in (text, other))
    assert torch.equal(a.tokens[:, :4], b.tokens[:, :4]) and not torch.equal(a.tokens[:, 4], b.tokens[:, 4])
    assert not torch.allclose(a.pooled, b.pooled), "[CLS] sees the whole text"
    a, b = (model.decoder.go_on(half.tokens, memory) for half in (a, b))
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.equal(a[:, 4], b[:, 4])


def test_cls_sees_no_padding(small: Small, pipeline: TextPipeline, batch: Batch) -> None:
    model = coca(small, pipeline)
    assert isinstance(model.text, Unimodal)
    with torch.no_grad():
        before = model.text(batch["text"]).pooled
        model.text.embedding.weight[pipeline.policy.pad_id] += 5
        after = model.text(batch["text"]).pooled
    assert (batch["text"][:, -1] == pipeline.policy.pad_id).all() and torch.equal(before, after)


def test_the_cascade_reads_the_captioning_tokens(small: Small, pipeline: TextPipeline, batch: Batch) -> None:
    for pooling, hangs in (("cascade", True), ("parallel", False)):
        model = coca(small, pipeline, pooling=pooling)
        before = model.vision(batch["image"]).pooled
        with torch.no_grad():
            model.vision.captioning.query.mul_(-1)
        after = model.vision(batch["image"]).pooled
        assert torch.equal(before, after) != hangs
    assert model.vision(batch["image"]).tokens.shape[1] == 64


def test_one_pass_over_the_text_serves_both_losses(
    small: Small, pipeline: TextPipeline, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    forward = Unimodal.forward
    monkeypatch.setattr(Unimodal, "forward", lambda self, ids: passes.append(1) or forward(self, ids))
    recipe = small("coca")
    learner = Learner(coca(small, pipeline), recipe.objectives)
    losses, _ = learner(batch, denominators(learner, [batch]))
    assert passes == [1]
    both = (
        2 * losses["softmax"] + 2 * losses["caption"]
    )  # Softmax is the mean of two directions; the paper's is the sum
    torch.testing.assert_close(losses["loss"], both)


def test_packed_texts_are_read_as_each_alone(small: Small, pipeline: TextPipeline, batch: Batch) -> None:
    model, text = coca(small, pipeline), batch["text"]
    assert isinstance(model.decoder, Multimodal)
    memory = model.vision(batch["image"]).tokens
    drawn = [[Target((), tuple(ids[ids != 0].tolist())) for ids in (row, row.flip(0))] for row in text]
    rows = pack(drawn, length=LENGTH, pad_id=0, mask_id=len(pipeline))
    hidden = model.decoder(*(rows[name] for name in ("inputs", "positions", "segments", "full")), memory)
    alone = model.decoder.go_on(model.text(text).tokens, memory)
    for row in range(len(text)):
        size = len(drawn[row][0].target)
        torch.testing.assert_close(hidden[row, :size], alone[row, :size], rtol=0, atol=1e-12)
        assert not torch.allclose(hidden[row, size : 2 * size], alone[row, :size])


def test_decoding_continues_what_was_trained(small: Small, pipeline: TextPipeline, batch: Batch) -> None:
    """Greedily decoded ids are the likeliest by the teacher-forced pass over them."""
    model = coca(small, pipeline)
    assert isinstance(model.decoder, Multimodal)
    with torch.no_grad():
        model.decoder.vocabulary.bias[pipeline.policy.pad_id] = -1e3  # no text that is trained has padding in it
        memory = model.vision(batch["image"]).tokens
        written = generate(model.decoder, memory, [()] * 4, pipeline)
        for row, ids in enumerate(written):
            text = torch.zeros(1, LENGTH, dtype=torch.int64)
            text[0, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            hidden = model.decoder.go_on(model.text(text).tokens, memory[row : row + 1])
            likeliest = model.decoder.vocabulary(hidden[0]).argmax(-1)
            assert likeliest[: len(ids)].tolist() == list(ids)
    assert len(set(written)) > 1


# LiT and PaLI


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timm")
    arguments = {"img_size": SIDE, "depth": 2, "embed_dim": 48, "num_heads": 4}
    TimmWrapperModel(TimmWrapperConfig(architecture="deit_tiny_patch16_224", model_args=arguments)).save_pretrained(
        folder
    )
    return folder


def test_lit_trains_a_text_tower_to_fit_a_locked_encoder(
    small: Small, encoder: Path, visits: list[Visit], pipeline: TextPipeline, tmp_path: Path
) -> None:
    recipe = small("lit")
    networks = replace(recipe.architecture, encoder=str(encoder))
    torch.manual_seed(0)
    learner = Learner(Model.new(networks, len(pipeline)), recipe.objectives)
    trained = {name for name, x in learner.named_parameters() if x.requires_grad}
    assert all(name.startswith(("model.text.", "model.logit_scale")) for name in trained)
    batch = collate(recipe, draw(recipe, visits, pipeline), pipeline)
    batch["image"] = batch["image"].float() / 127.5 - 1
    optimizer, locked = adamw(learner, 1e-2, 0.0), {k: v.clone() for k, v in learner.model.vision.state_dict().items()}
    losses = []
    for _ in range(40):
        loss, _ = learner(batch, denominators(learner, [batch]))
        optimizer.zero_grad()
        loss["loss"].backward()
        optimizer.step()
        losses.append(loss["loss"].item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, locked[name]) for name, value in learner.model.vision.state_dict().items())
    learner.model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    assert torch.equal(again.text(batch["text"]).pooled, learner.model.text(batch["text"]).pooled)
    assert again.logit_scale == learner.model.logit_scale
    pixels = batch["image"]
    theirs = AutoModel.from_pretrained(tmp_path)(((pixels + 1) / 2 - again.vision.mean) / again.vision.std)
    torch.testing.assert_close(again.vision(pixels).pooled, theirs.pooler_output, rtol=0, atol=1e-5)


def pali(small: Small, visits: list[Visit], pipeline: TextPipeline) -> tuple[Learner, Batch]:
    recipe = small("pali", tasks="caption,aref,count", frozen=False)
    torch.manual_seed(0)
    learner = Learner.new(recipe, pipeline).double()
    return learner, exact(collate(recipe, draw(recipe, visits[:4], pipeline), pipeline))


def test_pali_reads_image_and_prompt_and_not_the_answer_to_come(
    small: Small, visits: list[Visit], pipeline: TextPipeline
) -> None:
    learner, batch = pali(small, visits, pipeline)
    model = learner.model.pali
    assert model is not None
    memory = learner.model.vision(batch["image"]).tokens[batch["owner"]]

    def hidden(**changes: Tensor) -> Tensor:
        given = {"memory": memory, "prompts": batch["prompts"], "inputs": batch["answers_in"]} | changes
        return model(given["memory"], given["prompts"], given["inputs"])

    known = hidden()
    later = batch["answers_in"].clone()
    later[:, 3] = 7
    torch.testing.assert_close(hidden(inputs=later)[:, :3], known[:, :3], rtol=0, atol=1e-12)
    assert not torch.allclose(hidden(inputs=later)[:, 3], known[:, 3])
    assert not torch.allclose(hidden(memory=memory.roll(1, 0)), known)
    assert not torch.allclose(hidden(prompts=batch["prompts"].roll(1, 0)), known)
    padded = F.pad(batch["prompts"], (0, 8), value=pipeline.policy.pad_id)
    torch.testing.assert_close(hidden(prompts=padded), known, rtol=0, atol=1e-9)


def test_pali_starts_at_ln_v_and_trains_every_weight(small: Small, visits: list[Visit], pipeline: TextPipeline) -> None:
    learner, batch = pali(small, visits, pipeline)
    losses, _ = learner(batch, denominators(learner, [batch]))
    assert losses["answer"].item() == pytest.approx(torch.tensor(float(len(pipeline))).log().item(), abs=1e-6)
    torch.nn.init.normal_(learner.model.pali.vocabulary.weight, std=0.1)  # type: ignore[union-attr]
    learner(batch, denominators(learner, [batch])).losses["loss"].backward()
    assert not [
        name for name, x in learner.named_parameters() if x.requires_grad and (x.grad is None or not x.grad.any())
    ]


def test_pali_answers_as_it_was_trained(small: Small, visits: list[Visit], pipeline: TextPipeline) -> None:
    learner, batch = pali(small, visits, pipeline)
    model = learner.model.pali
    assert model is not None
    torch.nn.init.normal_(model.vocabulary.weight)
    with torch.no_grad():
        memory = learner.model.vision(batch["image"]).tokens[batch["owner"]]
        states, valid = model.read(memory, batch["prompts"])
        for most in (1, 3):
            given = [tuple(range(7, 7 + row % most)) for row in range(len(memory))]
            answers = generate(PaliDecoder(model), states, given, pipeline, valid=valid)
            for row, ids in enumerate(answers):
                inputs = torch.tensor([[pipeline.policy.pad_id, *given[row], *ids]])
                hidden = model(memory[row : row + 1], batch["prompts"][row : row + 1], inputs)
                likeliest = model.vocabulary(hidden[0]).argmax(-1)[len(given[row]) :]
                assert ids and likeliest[: len(ids)].tolist() == list(ids)


def test_a_batch_without_any_question_gives_zero(small: Small, visits: list[Visit], pipeline: TextPipeline) -> None:
    learner, _ = pali(small, visits, pipeline)
    recipe = small("pali", tasks="ocr")
    batch = exact(collate(recipe, draw(recipe, visits[:2], pipeline), pipeline))
    assert Answer().live(batch) == 0
    losses, _ = learner(batch, denominators(learner, [batch]))
    losses["loss"].backward()
    assert losses["loss"] == 0 and not any(x.grad.any() for x in learner.parameters() if x.grad is not None)
