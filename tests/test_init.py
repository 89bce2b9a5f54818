"""Weights of other makes come in and go out with the embeddings that their makers compute."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import peers
import pytest
import torch
import torch.nn.functional as F
from big_vision import GOLDENS, load
from conftest import Run
from peers import LENGTH, PATCH, SIDE, VOCABULARY, Peer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoProcessor, SiglipModel, SiglipVisionModel

from opensiglip.apps.cli import main
from opensiglip.checkpoints.export import export
from opensiglip.checkpoints.fit import fit
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, Shape, architecture, shapes, spell
from opensiglip.training.run import train

MAKERS = {
    "transformers SigLIP": peers.siglip,
    "transformers SigLIP 2": peers.siglip2,
    "transformers SigLIP 2 NaFlex": peers.siglip2_naflex,
    "transformers image tower": peers.siglip_vision,
    "timm": peers.timm_siglip,
    "open_clip": peers.open_clip_siglip,
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def peer_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Peer]:
    """One checkpoint of each make."""
    return {name: make(tmp_path_factory.mktemp("peer")) for name, make in MAKERS.items()}


def far(ours: Tensor | None, theirs: Tensor) -> float:
    """The largest difference of embeddings of length 1."""
    assert ours is not None
    assert theirs.std(0).max() > 1e-2, "all alike: nothing to compare"
    return peers.gap(F.normalize(ours, dim=-1), theirs)


@torch.no_grad()
@pytest.mark.parametrize("make", MAKERS)
def test_embeddings_are_the_peers(make: str, peer_of: dict[str, Peer]) -> None:
    peer = peer_of[make]
    model = Pretrained.open(peer.folder).model.eval()
    assert far(model.vision(peers.pixels()).pooled, peer.image(peers.pixels())) < TOLERANCE
    if peer.text is not None:
        assert model.text is not None
        assert far(model.text(peers.token_ids()).pooled, peer.text(peers.token_ids())) < TOLERANCE
        assert float(model.logit_bias) == -3.0
    assert (model.text is None) == (peer.text is None)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*has no tokenizer")
@pytest.mark.parametrize("make", [make for make in MAKERS if "NaFlex" not in make])  # tests/test_native_aspect.py
def test_plain_transformers_reloads_what_came_from_a_peer(make: str, peer_of: dict[str, Peer], tmp_path: Path) -> None:
    peer, out = peer_of[make], tmp_path / "out"
    export(str(peer.folder), out)
    back = AutoModel.from_pretrained(out)
    seen = peers.photographs(out)
    if peer.text is None:
        assert far(back(seen).pooler_output, peer.image(seen)) < TOLERANCE
        return
    ids = peers.token_ids()
    output = back(input_ids=ids, pixel_values=seen)
    assert far(output.image_embeds, peer.image(seen)) < TOLERANCE
    assert far(output.text_embeds, peer.text(ids)) < TOLERANCE
    alone = SiglipVisionModel.from_pretrained(out)
    assert far(alone(seen).pooler_output, peer.image(seen)) < TOLERANCE


@torch.no_grad()
def test_onnxruntime_computes_the_peers_embeddings_at_any_batch_size(peer_of: dict[str, Peer], tmp_path: Path) -> None:
    peer, out = peer_of["transformers SigLIP 2"], tmp_path / "out"
    assert main(["export", str(peer.folder), "--format", "onnx", "--out", str(out)]) == 0
    image = onnxruntime.InferenceSession(out / "image_encoder.onnx")
    for count in (1, 5):
        seen = peers.pixels(count)
        found = torch.from_numpy(image.run(["image_embeds"], {"pixel_values": seen.numpy()})[0])
        assert peers.gap(found, peer.image(seen)) < TOLERANCE
    text, ids = onnxruntime.InferenceSession(out / "text_encoder.onnx"), peers.token_ids(4)
    found = torch.from_numpy(text.run(None, {"input_ids": ids.numpy()})[0])
    assert peer.text is not None and peers.gap(found, peer.text(ids)) < TOLERANCE
    facts = json.loads((out / "opensiglip.json").read_text())
    assert facts["logit_bias"] == -3.0 and facts["text"]["length"] == LENGTH


@torch.no_grad()
def test_big_vision_files_come_in_and_go_out(tmp_path: Path) -> None:
    golden = load("siglip")
    export(str(GOLDENS / "siglip_big_vision.npz"), tmp_path / "out")
    back = AutoModel.from_pretrained(tmp_path / "out")
    seen = torch.from_numpy(golden["image"]).permute(0, 3, 1, 2)
    output = back(input_ids=torch.from_numpy(golden["text"]).long(), pixel_values=seen)
    assert far(output.image_embeds, torch.from_numpy(golden["image_embedding"])) < TOLERANCE
    assert far(output.text_embeds, torch.from_numpy(golden["text_embedding"])) < TOLERANCE
    assert (output.logits_per_image - torch.from_numpy(golden["logits"])).abs().max() < 1e-4


def test_big_visions_scanned_blocks_and_bfloat16_are_read(tmp_path: Path) -> None:
    golden = {key: value for key, value in load("siglip").items() if key.startswith("params/")}
    for tower in ("img/Transformer", "txt/Encoder_0"):
        names = [key for key in golden if f"{tower}/encoderblock_0/" in key]
        for name in names:
            both = [golden.pop(name.replace("block_0", f"block_{n}")) for n in range(2)]
            golden[name.replace("block_0", "block")] = np.stack(both)
    half = torch.from_numpy(golden["params/t"]).bfloat16()
    golden["params/t"] = half.view(torch.int16).numpy().view("V2")
    np.savez(tmp_path / "scanned.npz", **golden)
    ours = Pretrained.open(tmp_path / "scanned.npz").model.state_dict()
    plain = Pretrained.open(GOLDENS / "siglip_big_vision.npz").model.state_dict()
    assert torch.equal(ours.pop("logit_scale"), half.float()) and plain.pop("logit_scale") is not None
    assert ours.keys() == plain.keys() and all(torch.equal(ours[name], plain[name]) for name in plain)


TEXTS = ("a red apple", "two SHOVELS, above a mate.", "x", "a text that is longer than the tokens there are, " * 2)


@pytest.mark.parametrize(("make", "pad"), [("transformers SigLIP", 1), ("transformers SigLIP 2", 0), ("open_clip", 0)])
def test_texts_become_the_ids_that_the_peers_processor_makes(
    make: str, pad: int, peer_of: dict[str, Peer], tmp_path: Path
) -> None:
    folder = peer_of[make].folder
    pipeline = TextPipeline.released(folder, length=LENGTH, vocabulary=VOCABULARY, name=make)
    assert pipeline is not None and (pipeline.policy.pad_id, pipeline.policy.eos_id) == (pad, 1)
    assert len(pipeline) == VOCABULARY > len(pipeline.tokenizer)
    plain = peers.tokenizer("</s>", "</s>") if pad else peers.tokenizer()
    theirs = plain(list(TEXTS), padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    assert [pipeline.fixed(text).tolist() for text in TEXTS] == theirs
    assert [ids[-1] for ids in theirs] == [pad, pad, pad, 1], "padded, and ended though it was cut"
    export(str(folder), tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    exported = processor(text=list(TEXTS), padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    assert exported == theirs


def test_an_unclear_text_policy_is_warned_about(tmp_path: Path) -> None:
    peers.tokenizer(side="left").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"pads on the left to {LENGTH}; the text tower was trained on {LENGTH}"):
        TextPipeline.released(tmp_path, length=LENGTH, vocabulary=VOCABULARY, name="it")
    peers.tokenizer(pad="<unk>").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="end with 1 and are padded with 2"):
        TextPipeline.released(tmp_path, length=LENGTH, vocabulary=VOCABULARY, name="it")
    peers.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="entries, the checkpoint it has rows for 20"):
        TextPipeline.released(tmp_path, length=LENGTH, vocabulary=20, name="it")


def test_a_timm_encoder_of_another_kind_stays_timms(tmp_path: Path, peer_of: dict[str, Peer]) -> None:
    other = peers.timm_siglip(tmp_path, class_token=True, global_pool="token")
    model = Pretrained.open(other.folder).model.eval()
    with torch.no_grad():
        assert model.vision(peers.pixels()).tokens.shape == (3, 16, 32)
    assert model.architecture.encoder == str(other.folder)
    assert Pretrained.open(peer_of["timm"].folder).model.architecture.encoder is None


def test_a_naflexvit_of_timms_gives_its_tokens_on_squares(tmp_path: Path) -> None:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    other = peers.timm_vit(tmp_path, "naflexvit_base_patch16_gap", **sizes)
    model = Pretrained.open(other.folder).model.eval()
    assert model.architecture.patch == 8
    with torch.no_grad():
        seen = model.vision(peers.pixels())
        assert seen.tokens.shape == (3, 16, 32), "without its four registers"
        assert seen.pooled is not None
        assert far(F.normalize(seen.pooled, dim=-1), other.image(peers.pixels())) < TOLERANCE


def _model(side: int, patch: int, shape: Shape | None = None) -> Model:
    tower = shape or Shape(32, 2, 64, 2)
    return Model.new(Architecture(side, patch, LENGTH, tower, Shape(32, 2, 64, 2)), VOCABULARY)


def test_another_resolution_and_patch_are_resolved_by_their_rules(peer_of: dict[str, Peer]) -> None:
    checkpoint = Pretrained.open(peer_of["transformers SigLIP 2"].folder)
    model = _model(48, 12)
    fitted = fit(model, checkpoint)
    assert fitted.resized == ("patch_embedding [32, 3, 8, 8] -> [32, 3, 12, 12]",)
    seen = peers.pixels()
    larger = F.interpolate(seen.unfold(2, 8, 8).unfold(3, 8, 8).reshape(-1, 8, 8)[:, None], (12, 12), mode="bilinear")
    larger = larger.view(3, 3, 4, 4, 12, 12).permute(0, 1, 2, 4, 3, 5).reshape(3, 3, 48, 48)
    with torch.no_grad():
        ours = model.eval().vision(larger).pooled
        assert far(ours, peer_of["transformers SigLIP 2"].image(seen)) < TOLERANCE
    assert fit(_model(64, 8), checkpoint).resized == ("position_embedding [16, 32] -> [64, 32]",)


def test_a_shape_without_a_rule_is_one_sentence(peer_of: dict[str, Peer]) -> None:
    checkpoint = Pretrained.open(peer_of["transformers SigLIP"].folder)
    wide = Shape(64, 2, 64, 2)
    with pytest.raises(UserError, match=r"patch_embedding\.weight is \[32, .* and must be \[64, .*; leave out --size"):
        fit(Model.new(Architecture(32, 8, LENGTH, wide, wide), VOCABULARY), checkpoint)
    with pytest.raises(UserError, match=r"has no vision\.tower\.encoder\.layers\.2.*which the image tower needs"):
        fit(_model(32, 8, Shape(32, 3, 64, 2)), checkpoint)
    with pytest.raises(UserError, match=r"has vision\.tower\.encoder\.layers\.1.*which our networks lack"):
        fit(_model(32, 8, Shape(32, 1, 64, 2)), checkpoint)


@pytest.mark.parametrize("name", ["tiny", "B/16", "So400m/14", "g/16", "32x2x64x2/8", "32x2x64x2+48x3x96x4/8"])
def test_a_size_is_spelled_and_read_back(name: str) -> None:
    assert spell(architecture(name, None, text=True)) == name


@pytest.mark.parametrize("name", ["32x2x64/8", "32x2x64x5/8", "1x1x1x1+/8", "B/0", "B", "tiny/8", "32x2x64x2", "Bx/16"])
def test_what_is_no_size_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is unknown; sizes are tiny"):
        shapes(name)


def test_what_is_not_there_or_not_readable_is_named(tmp_path: Path, peer_of: dict[str, Peer]) -> None:
    with pytest.raises(UserError, match="no such folder or file"):
        Pretrained.open(tmp_path / "nowhere")
    file = tmp_path / "weights.pt"
    torch.save({}, file)
    with pytest.raises(UserError, match=r"is not an \.npz file; give a run"):
        Pretrained.open(file)
    np.savez(tmp_path / "bad.npz", **{"params/img/embedding/kernel": np.array([{}], dtype=object)})
    with pytest.raises(UserError, match=r"not a readable \.npz file .*Python objects, which would be unpickled"):
        Pretrained.open(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="neither SigLIP's towers nor CapPa's"):
        Pretrained.open(tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"not a readable \.npz file"):
        Pretrained.open(tmp_path / "bad.npz")
    folder = tmp_path / "pickled"
    shutil.copytree(peer_of["transformers SigLIP"].folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can't be read .*safetensors"):
        Pretrained.open(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        Pretrained.open(folder)


def test_a_hub_id_is_fetched_without_anything_that_could_run(
    monkeypatch: pytest.MonkeyPatch, peer_of: dict[str, Peer]
) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(peer_of["transformers SigLIP"].folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert Pretrained.open("google/siglip-base-patch16-224").format == "transformers SiglipModel"
    (patterns,) = asked.values()
    assert patterns and not any(pattern.endswith((".py", ".bin", ".pt", ".pkl", "*")) for pattern in patterns)


# Training from what was read.


def begin(init: Path, folder: str, out: Path, recipe: str, **changes: Any) -> dict[str, Tensor]:
    """A step of nothing: the exported weights are those that training began with."""
    settings: dict[str, Any] = {"steps": 1, "batch_size": 8, "workers": 0, "held_out": 0, "precision": "fp32"}
    settings["memory_check"] = False
    train(recipe, data=[folder], out=out, init=str(init), **settings | {"lr": 1e-9, "warmup": 0} | changes)
    model = Model.from_pretrained(out / "model")
    return model.state_dict()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # of peft's, about transformers
def test_training_begins_with_an_adapter_merged(folder: str, recipe: str, tmp_path: Path) -> None:
    """W + alpha / r · B A, of a matrix that the adapter has, by hand; all else is the model's that it adapts."""
    base = peers.siglip2(tmp_path / "base").folder
    adapted = get_peft_model(SiglipModel.from_pretrained(base), LoraConfig(target_modules=["fc1"], r=4, lora_alpha=6))
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    plain = Pretrained.open(base).model.state_dict()
    merged = begin(tmp_path / "adapter", folder, tmp_path / "merged", recipe)
    changes = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stem = "base_model.model.vision_model.encoder.layers.0.mlp.fc1.lora_"
    change = 6 / 4 * changes[f"{stem}B.weight"] @ changes[f"{stem}A.weight"]
    (name,) = (n for n in plain if n.startswith("vision.") and ".0." in n and plain[n].shape == change.shape)
    assert float((merged[name] - plain[name] - change).abs().max()) < 1e-5 < 0.1 < float(change.abs().max())


@pytest.mark.parametrize("make", ["transformers SigLIP", "transformers SigLIP 2 NaFlex", "open_clip"])
def test_a_checkpoint_brings_its_networks_weights_and_words(
    make: str,
    recipe: str,
    peer_of: dict[str, Peer],
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peer = peer_of[make]
    ours = begin(peer.folder, folder, tmp_path, recipe)
    theirs = Pretrained.open(peer.folder).model.state_dict()
    kernel = "vision.tower.embeddings.patch_embedding.weight"
    if "NaFlex" in make:  # a recipe of squares has the same patch embedding as a convolution
        theirs[kernel] = theirs[kernel].unflatten(1, (PATCH, PATCH, 3)).permute(0, 3, 1, 2)
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in theirs)
    assert {name.split(".")[0] for name in ours.keys() - theirs.keys()} == {"decoder"}
    said = capsys.readouterr().out
    assert "fresh: the decoder" in said and f"vocabulary {VOCABULARY}, length {LENGTH}" in said
    facts = json.loads((tmp_path / "model" / "opensiglip.json").read_text())
    assert facts["text"]["pad_id"] == int(make == "transformers SigLIP")
    assert facts["architecture"]["vision"]["activation"] == ("gelu" if make == "open_clip" else "gelu_pytorch_tanh")


def test_cappa_goes_on_with_its_decoder(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="the tokenizer has 258 entries"):  # 256 bytes do not fit its 96 rows
        begin(GOLDENS / "cappa_big_vision.npz", folder, tmp_path / "without", "cappa", vocabulary=258)
    peers.tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.warns(UserWarning, match="trained on 12 tokens"):
        ours = begin(
            GOLDENS / "cappa_big_vision.npz", folder, tmp_path / "run", "cappa", tokenizer=str(tmp_path / "tokenizer")
        )
    theirs = Pretrained.open(GOLDENS / "cappa_big_vision.npz").model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in theirs)
    assert " fresh" not in capsys.readouterr().out


def test_without_a_tokenizer_one_is_trained_within_the_vocabulary(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = peers.siglip(tmp_path / "peer")
    for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / "peer" / file).unlink()
    weights = load_file(peer.folder / "model.safetensors")
    table = "text_model.embeddings.token_embedding.weight"
    weights[table] = torch.randn(300, 32)
    save_file(weights, peer.folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((peer.folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 300
    (peer.folder / "config.json").write_text(json.dumps(config))
    begin(peer.folder, folder, tmp_path / "run", "siglip")
    assert "has no tokenizer: one of at most 300 entries is trained on the data" in capsys.readouterr().out
    processor = AutoProcessor.from_pretrained(tmp_path / "run" / "model")
    assert 256 < len(processor.tokenizer) <= 300
    assert processor.image_processor.size == {"height": SIDE, "width": SIDE}


def test_a_t5_learns_to_read_an_image_tower_that_is_brought(
    run: Run, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "first", steps=2)
    begin(tmp_path / "first", folder, tmp_path / "pali", "pali")
    assert "fresh: the T5" in capsys.readouterr().out


def test_a_bias_that_no_loss_has_trained_is_not_brought(small: Any, pipeline: TextPipeline) -> None:
    """CLIP's softmax does not feel one; a sigmoid that began with 0 in place of -10 would start at 0.69 a pair."""
    clip, siglip = (Model.new(small(name).architecture, len(pipeline)).eval() for name in ("clip", "siglip"))
    fitted = fit(siglip, Pretrained.of(clip, pipeline, name="clip"))
    assert "logit_scale" in fitted.brought
    small("siglip").objectives[0].initialise(siglip, 32, fitted.brought)
    assert float(siglip.logit_bias.detach()) == -10


def test_our_own_run_goes_on_in_another_recipe(
    run: Run, recipe: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = tmp_path / "first"
    run(run_folder, steps=2)
    first = Model.from_pretrained(run_folder / "model").state_dict()
    again = begin(run_folder, folder, tmp_path / "second", recipe)
    assert again.keys() == first.keys()
    assert all((again[name] - first[name]).abs().max() < 1e-6 for name in first)
    alone = begin(run_folder, folder, tmp_path / "third", "cappa", freeze="vision")
    assert "left out: the image tower's pooling, the text tower, temperature and bias" in capsys.readouterr().out
    assert not any(name.startswith(("text.", "vision.tower.head")) for name in alone)


# What moves.


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("freeze", ["vision", "text"])
def test_a_frozen_tower_does_not_move_and_the_other_does(
    freeze: str, peer_of: dict[str, Peer], folder: str, tmp_path: Path
) -> None:
    peer = peer_of["transformers SigLIP 2"]
    after = begin(peer.folder, folder, tmp_path, "siglip", freeze=freeze, lr=1e-2)
    went = {name.split(".")[0] for name in moved(Pretrained.open(peer.folder).model.state_dict(), after)}
    assert went == {"vision", "text", "logit_scale", "logit_bias"} - {freeze}


def test_towers_learn_at_their_share_of_the_rate(peer_of: dict[str, Peer], folder: str, tmp_path: Path) -> None:
    peer = peer_of["transformers SigLIP 2"]
    before = Pretrained.open(peer.folder).model.state_dict()
    name = "vision.tower.encoder.layers.0.mlp.fc1.bias"
    steps = []
    for place, share in enumerate((1.0, 0.1)):
        after = begin(peer.folder, folder, tmp_path / str(place), "siglip", tower_lr=share, lr=1e-3)
        steps.append(((after[name] - before[name]).abs().max(), (after["logit_bias"] - before["logit_bias"]).abs()))
    assert steps[1][0] / steps[0][0] == pytest.approx(0.1, rel=0.01)  # Adam's first step is the rate
    assert steps[1][1] == pytest.approx(float(steps[0][1])) and steps[0][1] > 1e-4


def test_lora_moves_the_towers_layers_alone_and_is_merged(
    peer_of: dict[str, Peer], recipe: str, folder: str, tmp_path: Path
) -> None:
    peer = peer_of["transformers SigLIP 2"]
    after = begin(peer.folder, folder, tmp_path, recipe, lora=2, lr=1e-2, steps=5)  # the teacher's terms at step 4
    before = Pretrained.open(peer.folder).model.state_dict()
    assert {n for n in after if not n.startswith("decoder.")} == before.keys(), "nothing of peft is left"
    assert load_file(tmp_path / "stages" / "step-00000004.safetensors").keys() == after.keys()
    went = moved(before, after) - {"logit_scale", "logit_bias"}
    assert went and all(".encoder.layers." in name and name.endswith("weight") for name in went)
    assert all(torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= 2 for name in went)
    assert went >= {f"{tower}.tower.encoder.layers.1.mlp.fc2.weight" for tower in ("vision", "text")}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--freeze vision", "--freeze, --tower-lr and --lora are for weights of --init, --vision or --text; give one"),
        ("--init {peer} --freeze all", "--freeze"),
        ("--init {peer} --lora 0", "--lora 0 is out of range"),
        ("--init {peer} --tower-lr 0", "--tower-lr 0.0 is out of range"),
        ("--init {peer} --tokenizer {peer}", "--tokenizer is not the one that the weights"),
        ("--init {peer} --length 20", r"position_embedding.weight is \[64, 32\] and must be \[20, 32\]"),
        ("--init {timm}", "compares pooled images with texts; take cappa, locca"),
        ("--init nowhere", "nowhere: there is no such folder or file"),
        ("coca --init {peer}", "is no CoCa"),
    ],
)
def test_what_can_not_be_is_one_sentence(
    flags: str,
    sentence: str,
    peer_of: dict[str, Peer],
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = peers.timm_siglip(tmp_path / "timm", class_token=True, global_pool="token").folder
    words = flags.format(peer=peer_of["transformers SigLIP"].folder, timm=plain).split()
    recipe = words.pop(0) if words[0] == "coca" else "siglip"
    words = ["train", recipe, "--data", folder, "--out", str(tmp_path / "run"), "--workers", "0", *words]
    assert main([*words, "--size", "tiny"] if "--init" not in words else words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(sentence, said), said
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_hub_gets_the_folder_that_was_written(
    monkeypatch: pytest.MonkeyPatch, peer_of: dict[str, Peer], tmp_path: Path
) -> None:
    sent: dict[str, Any] = {}

    class Hub:
        def create_repo(self, name: str, exist_ok: bool) -> None:
            assert exist_ok

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
            sent[repo_id] = {path.name for path in Path(folder_path).iterdir()}
            return f"hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    export(str(peer_of["transformers SigLIP 2"].folder), tmp_path / "out", push_to_hub="me/mine")
    wanted = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "processor_config.json"}
    assert wanted <= sent["me/mine"]
    with pytest.raises(UserError, match="is there already; name a folder"):
        export(str(peer_of["transformers SigLIP 2"].folder), tmp_path / "out")

    class Offline(Hub):
        def create_repo(self, name: str, exist_ok: bool) -> None:
            raise ConnectionError("no way out")

    monkeypatch.setattr("huggingface_hub.HfApi", Offline)
    with pytest.raises(UserError, match=r"failed \(no way out\); .* can be sent later"):
        export(str(peer_of["transformers SigLIP 2"].folder), tmp_path / "other", push_to_hub="me/mine")
