"""Weights that are not there never become noise in silence; adapters are added to what they were trained on."""

import json
from collections.abc import Callable
from pathlib import Path

import peers
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipForImageClassification, SiglipModel

from opensiglip.apps.cli import main
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.errors import UserError
from opensiglip.models.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # of peft's, about transformers

State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A SigLIP of transformers."""
    return peers.siglip2(tmp_path / "peer").folder


def rewrite(folder: Path, change: Callable[[State], State], file: str = "model.safetensors") -> None:
    """Change a folder's tensors on disk."""
    state = change(load_file(folder / file))
    save_file({name: x.contiguous().clone() for name, x in state.items()}, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefixes_of_wrappers_are_no_part_of_a_name(prefix: str, folder: Path) -> None:
    before = Pretrained.open(folder).model.state_dict()
    rewrite(folder, lambda state: {prefix + name: x for name, x in state.items()})
    after = Pretrained.open(folder).model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("gone", "first"),
    [
        (".layers.1.", "vision.tower.encoder.layers.1.layer_norm1.weight, which the image tower needs"),
        ("text_model", "text.tower.embeddings.token_embedding.weight, which the text tower needs"),
        ("logit_bias", "logit_bias, which temperature and bias needs"),
    ],
)
def test_the_first_tensor_that_is_missing_is_named(
    gone: str, first: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder, lambda state: {name: x for name, x in state.items() if gone not in name})
    assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert f"has no {first}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tensors_that_no_network_has_are_named_once(folder: Path) -> None:
    rewrite(folder, lambda state: state | {"more.weight": torch.zeros(1), "more.bias": torch.zeros(1)})
    with pytest.warns(
        UserWarning, match=r"has vision\.tower\.more\.\w+ and 1 more, which its networks have no"
    ) as said:
        Pretrained.open(folder)
    assert len(said) == 1


def test_a_classifier_is_refused_since_it_has_no_text_tower(folder: Path, tmp_path: Path) -> None:
    config = SiglipConfig.from_pretrained(folder)
    SiglipForImageClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(UserError, match="a SiglipForImageClassification: a classifier's image tower, without a text"):
        Pretrained.open(tmp_path / "classifier")


def test_other_formats_name_what_is_missing_too(tmp_path: Path) -> None:
    open_clip = peers.open_clip_siglip(tmp_path / "open_clip").folder
    rewrite(
        open_clip,
        lambda state: {n: x for n, x in state.items() if n != "text.ln_final.bias"},
        "open_clip_model.safetensors",
    )
    with pytest.raises(UserError, match=r"has no text\.tower\.final_layer_norm\.bias"):
        Pretrained.open(open_clip)
    timm = peers.timm_siglip(tmp_path / "timm", class_token=True, global_pool="token").folder
    rewrite(timm, lambda state: {n: x for n, x in state.items() if n != "norm.bias"})
    with pytest.raises(UserError, match=r"has no timm_model\.norm\.bias"):
        Pretrained.open(timm)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPConfig(text_config=tower | {"vocab_size": 64}, vision_config=tower | {"image_size": 32, "patch_size": 8})
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    rewrite(tmp_path / "clip", lambda state: {n: x for n, x in state.items() if n != "visual_projection.weight"})
    with pytest.raises(UserError, match=r"has no visual_projection\.weight"):
        Pretrained.open(tmp_path / "clip")
    ours = tmp_path / "ours"
    Pretrained.open(peers.siglip2(tmp_path / "peer").folder).save(ours)
    rewrite(ours, lambda state: {n: x for n, x in state.items() if n != "vision_model.head.probe"})
    with pytest.raises(UserError, match=r"have no vision_model\.head\.probe"):
        Model.from_pretrained(ours)


def adapter(base: Path, folder: Path, **settings: object) -> SiglipModel:
    """An adapter on the model in `base`, none of its matrices zero, saved; what peft itself merges it to."""
    config = LoraConfig(target_modules=["q_proj", "fc1"], r=4, lora_alpha=6, **settings)  # type: ignore[arg-type]
    model = get_peft_model(SiglipModel.from_pretrained(base), config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model.merge_and_unload()


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"fc1": 3}}, {"modules_to_save": ["text_model.head"]}]
)
def test_an_adapter_is_merged_as_peft_merges_it(settings: dict[str, object], folder: Path, tmp_path: Path) -> None:
    merged = adapter(folder, tmp_path / "adapter", **settings)
    opened = Pretrained.open(tmp_path / "adapter")
    ids, seen = peers.token_ids(), peers.pixels()
    expected = merged(input_ids=ids, pixel_values=seen)
    image, text = opened.model.vision(seen).pooled, opened.model.text(ids).pooled
    assert peers.gap(torch.nn.functional.normalize(image, dim=-1), expected.image_embeds) < 1e-5
    assert peers.gap(torch.nn.functional.normalize(text, dim=-1), expected.text_embeds) < 1e-5
    plain = Pretrained.open(folder).model.vision(seen).pooled
    assert float((plain - image).abs().max()) > 1e-2, "the adapter changed something"
    assert opened.pipeline is not None and "a LoRA adapter of" in opened.format


def test_an_adapter_that_can_not_be_merged_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    adapter(folder, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    for change, sentence in (
        ({"base_model_name_or_path": None}, "names no model in its adapter_config.json"),
        ({"use_dora": True}, "an adapter of kind DoRA"),
        ({"base_model_name_or_path": str(tmp_path / "nowhere")}, "nowhere: there is no such folder"),
    ):
        (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=sentence):
            Pretrained.open(tmp_path / "adapter")
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    rewrite(
        tmp_path / "adapter",
        lambda state: {n.replace("q_proj", "qq"): x for n, x in state.items()},
        "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match="which the model that it names has no place for"):
        Pretrained.open(tmp_path / "adapter")
