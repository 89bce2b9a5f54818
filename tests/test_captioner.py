"""The captioning preset on a frozen timm encoder: seed 002's prototype, end to end."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModel, TimmWrapperConfig, TimmWrapperModel

from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.recipes import captioner
from opensiglip.training.record import command
from opensiglip.training.run import train


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A timm ViT with a class token and ImageNet's mean and std, saved as users' encoders are."""
    torch.manual_seed(0)
    arguments = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 4}
    config = TimmWrapperConfig(architecture="deit_tiny_patch16_224", model_args=arguments)
    TimmWrapperModel(config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A byte-level BPE as GPT-2's: an end-of-text token and no pad."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        ["a red apple and a fox"] * 4,
        trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False),
    )
    trained.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_the_decoder_learns_and_the_encoder_stays(tmp_path: Path, encoder: Path, tokenizer: Path) -> None:
    """One run with the prototype's settings: 6 layers, length 77, three quarters in parallel, GPT-2-like tokenizer."""
    summary = train(
        "captioner",
        data=["scenes:drawings=24,objects=2,pixels=32"],
        out=tmp_path / "run",
        tokenizer=str(tokenizer),
        encoder=str(encoder),
        size="tiny",
        resolution=32,
        decoder_depth=6,
        steps=4,
        batch_size=8,
        workers=0,
        held_out=0,
        precision="fp32",
    )
    assert summary["losses"]["loss/caption"]["last"] < summary["losses"]["loss/caption"]["first"]
    before, after = (load_file(folder / "model.safetensors") for folder in (encoder, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    reloaded = Model.from_pretrained(tmp_path / "run" / "model")
    assert reloaded.decoder is not None
    assert len(reloaded.decoder.blocks) == 6
    assert reloaded.decoder.length == 77
    plain = AutoModel.from_pretrained(tmp_path / "run" / "model")
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    normalised = ((pixels + 1) / 2 - reloaded.vision.mean) / reloaded.vision.std
    theirs = plain(normalised).last_hidden_state[:, 1:]  # without the class token
    torch.testing.assert_close(reloaded.vision(pixels).tokens, theirs, atol=1e-6, rtol=0)


def test_end_of_text_is_learned_where_the_tokenizer_has_no_pad(tokenizer: Path) -> None:
    pipeline = TextPipeline.load(str(tokenizer), 77)
    assert pipeline.policy.pad_id != pipeline.policy.eos_id
    ids = pipeline.fixed("a fox")
    assert list(ids).count(pipeline.policy.eos_id) == 1
    assert ids[-1] == pipeline.policy.pad_id


def test_an_encoder_that_is_not_there_is_one_sentence() -> None:
    recipe = captioner(encoder="/no/such/encoder", size="tiny", resolution=32)
    with pytest.raises(UserError, match="--encoder '/no/such/encoder' can't be loaded"):
        Model.new(replace(recipe.architecture), 100)


def test_a_tower_from_noise_may_learn_and_the_command_repeats_that() -> None:
    for frozen in (True, False):
        recipe = captioner(encoder=None, frozen=frozen, size="tiny", resolution=32)
        model = Model.new(recipe.architecture, 100)
        assert {parameter.requires_grad for parameter in model.vision.parameters()} == {not frozen}
    said = {"recipe": "captioner", "train": {"init": None}, "keywords": {"encoder": None, "decoder_depth": None}}
    assert command(said, Path("out")) == "opensiglip train captioner --encoder None --out out"
