"""Pretrained towers of other makes: read as their library reads them, frozen, cached, aligned by heads, exported."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from filelock import lock_descriptor
from forkserver import start_ranks
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    BertModel,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

import opensiglip
from opensiglip import UserError
from opensiglip.apps.cli import main
from opensiglip.checkpoints.export import export
from opensiglip.checkpoints.formats.towers import text_pipeline, with_text, with_vision
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.checkpoints.seen_images import read_seen
from opensiglip.data.example import Example, Source
from opensiglip.data.fields.field import Field, Images, Texts, Visit
from opensiglip.data.fields.frame import Frame
from opensiglip.data.fields.states import as_array, as_tensor
from opensiglip.data.fields.views import PatchMask
from opensiglip.data.loader import to_device
from opensiglip.data.size_schedule import SizeSchedule
from opensiglip.data.sources.cached import CachedSource, TextInput
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.state_store import StateStore, StoreWriter, read_blocks
from opensiglip.data.sources.subset import Subset, split_off
from opensiglip.models import lora
from opensiglip.models.averaged_head import AveragedHead
from opensiglip.models.model import Model
from opensiglip.models.pretrained_towers import ImageHead, PretrainedText, PretrainedVision
from opensiglip.models.sizes import Architecture, PairShape, Shape
from opensiglip.models.tower_host import load_tower
from opensiglip.objectives.base import Encoded
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.training import cache_writer, feature_cache, loop, remembered
from opensiglip.training.curation.reference import BLOCK
from opensiglip.training.planning import check
from opensiglip.training.run import train
from opensiglip.training.shown_images import image_key
from opensiglip.types import Batch, Features

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TEXTS = ["a fox", "two red apples", "zebra"]
PLAIN = Architecture(28, 14, 24, Shape(32, 2, 64, 4), text=Shape(32, 2, 64, 4))


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dinov2, registers, vit: random image towers of 28 pixels; bert, bert-digits: sentence encoders of signs."""
    root = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    sides: dict[str, Any] = {"image_size": 28, "patch_size": 14} | SHAPE
    made = {
        "dinov2": Dinov2Model(Dinov2Config(**sides)),
        "registers": Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sides, num_register_tokens=3)),
        "vit": ViTModel(ViTConfig(**sides, intermediate_size=64)),
    }
    for name, tower in made.items():
        for parameter in tower.parameters():  # at 1 and 0 norms would hide what is read from where
            torch.nn.init.normal_(parameter, std=0.2)
        tower.save_pretrained(root / name)
    size = {"height": 28, "width": 28}
    for name in ("dinov2", "registers"):
        BitImageProcessor(size=size, do_center_crop=False, resample=3, image_mean=MEAN, image_std=STD).save_pretrained(
            root / name
        )
    ViTImageProcessor(size=size).save_pretrained(root / "vit")
    letters = "abcdefghijklmnopqrstuvwxyz"
    for name, signs in {"bert": letters, "bert-digits": letters + "0123456789:"}.items():
        words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *signs, *("##" + sign for sign in signs)]
        tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
        names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names).save_pretrained(root / name)
        bert = BertModel(BertConfig(vocab_size=len(words), intermediate_size=64, max_position_embeddings=40, **SHAPE))
        bert.save_pretrained(root / name)
    return root


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (28, 28, 3), dtype=np.uint8))


def in_our_range(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize(("name", "prefix"), [("dinov2", 1), ("registers", 4), ("vit", 1)])
def test_an_image_tower_reads_what_its_own_library_reads(towers: Path, name: str, prefix: int) -> None:
    networks = with_vision(PLAIN, towers / name, name)
    assert networks.pair is not None and networks.pair.vision is not None
    tower = AutoModel.from_pretrained(towers / name).eval()
    ours = PretrainedVision(tower, mean=networks.pair.mean, std=networks.pair.std, pair=networks.pair)
    processor = AutoImageProcessor.from_pretrained(towers / name)
    with torch.no_grad():
        theirs = tower(**processor(photo(), return_tensors="pt")).last_hidden_state
        found = ours(in_our_range(photo()))
    torch.testing.assert_close(found.tokens, theirs[:, prefix:], rtol=0, atol=1e-5)
    assert found.tokens.shape[1] == 4, "class token and registers are no patches"


def test_heads_read_class_token_and_patches_as_they_say(towers: Path) -> None:
    networks = with_vision(PLAIN, towers / "registers", "registers")
    assert networks.pair is not None
    tower = AutoModel.from_pretrained(towers / "registers").eval()
    ours = PretrainedVision(tower, mean=networks.pair.mean, std=networks.pair.std, pair=networks.pair)
    with torch.no_grad():
        states, read = ours.states(in_our_range(photo())), ours.read(in_our_range(photo()))
    first, patches = states[:, 0], states[:, 4:]  # a class token, three registers, four patches
    torch.testing.assert_close(read, torch.cat([patches.mean(1, keepdim=True), first[:, None], patches], 1))
    for kind, wanted in {"linear": first, "mlp": torch.cat([first, patches.mean(1)], 1)}.items():
        head = ImageHead(PairShape(head=kind, embed=4), 32, has_class=True)
        torch.testing.assert_close(head(read[:, :2]), head.out(wanted))
    without = ImageHead(PairShape(head="linear", embed=4), 32, has_class=False)
    torch.testing.assert_close(without(read[:, :1]), without.out(patches.mean(1)))


def test_attention_pooling_equals_torchs_over_class_token_and_patches() -> None:
    torch.manual_seed(0)
    head, read = (
        ImageHead(PairShape(head="map", embed=8), 128, has_class=True).double(),
        torch.randn(3, 9, 128).double(),
    )
    torch.nn.init.normal_(head.attention.in_proj_bias)
    query, tokens = head.probe.expand(3, -1, -1), read[:, 1:]
    wanted = head.out(head.attention(query, tokens, tokens, need_weights=False)[0][:, 0])
    torch.testing.assert_close(head(read), wanted)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_texts_pool_as_their_encoder_was_trained_and_padding_changes_nothing(towers: Path, pooling: str) -> None:
    bert, pipeline = AutoModel.from_pretrained(towers / "bert").eval(), text_pipeline(towers / "bert", "bert", 24)
    ours = PretrainedText(bert, PairShape(pooling=pooling, embed=8), pad_id=0).eval()
    for text in TEXTS:  # alone, without padding, by the library's own tokenizer
        tokenizer = PreTrainedTokenizerFast.from_pretrained(towers / "bert")
        with torch.no_grad():
            plain = bert(**tokenizer(text, return_tensors="pt"))
            first = plain.last_hidden_state
            wanted = {"mean": first.mean(1), "cls": first[:, 0], "pooler": plain.pooler_output}[pooling]
            found = ours.read(torch.from_numpy(pipeline.fixed(text))[None])[:, 0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_tower_without_its_pooler_is_the_same_whatever_the_seed(towers: Path, tmp_path: Path) -> None:
    """Its cached states are found by its weights."""
    place = shutil.copytree(towers / "bert", tmp_path / "bert")
    weights = load_file(place / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(cache_writer.digest_of((), load_tower(str(place), "--text")))
    assert found[0] == found[1] != cache_writer.digest_of((), load_tower(str(towers / "bert"), "--text"))


def test_sentence_transformers_pooling_is_taken_from_its_folder(towers: Path, tmp_path: Path) -> None:
    assert with_text(PLAIN, towers / "bert", "bert").pair.pooling == "mean"  # type: ignore[union-attr]
    place = tmp_path / "cls"
    (place / "1_Pooling").mkdir(parents=True)
    (place / "config.json").write_bytes((towers / "bert" / "config.json").read_bytes())
    (place / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert with_text(PLAIN, place, "cls").pair.pooling == "cls"  # type: ignore[union-attr]


def test_states_keep_their_bits_in_the_cache() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        states = torch.randn(3, 2).to(dtype)
        assert torch.equal(as_tensor(as_array(states)), states)


def arguments(towers: Path, folder: str, out: Path, **more: Any) -> dict[str, Any]:
    common = {"data": folder, "out": out, "steps": 4, "batch_size": 8, "lr": 1e-3, "precision": "fp32", "workers": 0}
    pair = {"vision": str(towers / "dinov2"), "text": str(towers / "bert"), "length": 24, "embed": 16, "held_out": 0}
    common["memory_check"] = False  # a second for each run
    return common | pair | more


def losses(out: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (out / "metrics.jsonl").read_text().splitlines()]


def learner(out: Path) -> dict[str, torch.Tensor]:
    newest = max((out / "checkpoints").iterdir())
    return load_file(newest / "learner.safetensors")


@pytest.mark.parametrize("head", ["mlp", "map"])
def test_a_run_from_cached_features_equals_one_that_encodes(
    towers: Path, folder: str, tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train("align", **arguments(towers, folder, tmp_path / "encoded", head=head, features_gb=0))
    assert "not cached" in capsys.readouterr().out
    train("align", **arguments(towers, folder, tmp_path / "cached", head=head))
    assert "24 images: 0 known, encoding 24, in" in capsys.readouterr().out
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "encoded"), rtol=1e-6, atol=0)
    encoded, cached = learner(tmp_path / "encoded"), learner(tmp_path / "cached")
    for name, tensor in encoded.items():
        torch.testing.assert_close(cached[name], tensor, rtol=0, atol=1e-5)
    tower = load_file(towers / "dinov2" / "model.safetensors")
    name = "encoder.layer.0.mlp.fc1.weight"
    assert torch.equal(cached[f"model.vision.tower.{name}"], tower[name]), "a frozen tower stays as it was"


def test_an_image_tower_that_learns_beside_cached_texts_sees_the_images(
    towers: Path, folder: str, tmp_path: Path
) -> None:
    """The first loss is that of frozen towers, as no weight has moved yet."""
    train("align", **arguments(towers, folder, tmp_path / "learns", freeze="text"))
    train("align", **arguments(towers, folder, tmp_path / "frozen", freeze="both"))
    assert losses(tmp_path / "learns")[0] == pytest.approx(losses(tmp_path / "frozen")[0], abs=1e-5)
    assert losses(tmp_path / "learns")[1:] != losses(tmp_path / "frozen")[1:]


def test_a_curated_run_reads_cached_features_beside_the_references_rows(
    towers: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It chooses the same examples, learns the same from them, and its report shows their pictures."""
    train("align", **arguments(towers, folder, tmp_path / "reference"))
    curated = {"curate": "learnability", "reference": str(tmp_path / "reference"), "steps": 12}
    curated |= {"set_aside": 4, "eval_every": 12}
    train("align", **arguments(towers, folder, tmp_path / "encoded", **curated, features_gb=0))
    assert "reference   encodes every batch" in capsys.readouterr().out
    train("align", **arguments(towers, folder, tmp_path / "cached", **curated))
    said = capsys.readouterr().out
    assert "reads cached embeddings of 24 examples" in said and "features    0.00 GB of images' states" in said
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "encoded"), rtol=0, atol=1e-5)
    encoded, cached = learner(tmp_path / "encoded"), learner(tmp_path / "cached")
    for name, tensor in encoded.items():
        torch.testing.assert_close(cached[name], tensor, rtol=0, atol=1e-4)
    pages = [(tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("encoded", "cached")]
    shown = [page.partition("<h2>Selected examples</h2>")[2].partition("<h2>")[0] for page in pages]
    pictures = [set(re.findall(r'src="(data:[^"]*)"', part)) for part in shown]
    assert pictures[0] == pictures[1] and len(pictures[0]) > 8


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images and texts towers of another make have read since."""
    counts = {"images": 0, "texts": 0}

    def counting(kind: Any, name: str) -> None:
        states = kind.states

        def counted(self: Any, inputs: torch.Tensor) -> Any:
            counts[name] += len(inputs)
            return states(self, inputs)

        monkeypatch.setattr(kind, "states", counted)

    counting(PretrainedVision, "images")
    counting(PretrainedText, "texts")
    return counts


def rows(features: Path, kind: str) -> dict[bytes, np.ndarray]:
    """A reference's rows of images or texts, by key."""
    [folder] = features.glob(f"reference-{kind}-*-heads/")
    store = StateStore(folder)
    return {bytes(key): store[key] for block in read_blocks(folder) for key in block.keys}


def taught(towers: Path, folder: str, root: Path, **more: Any) -> dict[str, Any]:
    """The arguments of a curated run with a reference and a teacher, of the learner's frozen towers unless told."""
    for at, role in enumerate(("reference", "teacher")):
        if not (root / role).exists():
            train("align", **arguments(towers, folder, root / role, seed=at, features=root / "theirs"))
    beside = {role: str(root / role) for role in ("reference", "teacher")}
    curated = {"curate": "learnability", "distil": "softmax", "steps": 6, "save_every": 3, "keep_last": 9}
    return arguments(towers, folder, root / "run", features=root / "features", **beside | curated | more)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_references_of_the_learners_towers_compute_their_heads_alone(
    towers: Path,
    folder: str,
    tmp_path: Path,
    encoded: dict[str, int],
    precision: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows are those of encoding anew: in float32 to rounding, in bfloat16 to that of the cache's states."""
    given = taught(towers, folder, tmp_path, precision=precision)
    encoded.update(images=0, texts=0), capsys.readouterr()
    train("align", **given)
    sizes = 2 * BLOCK  # each of the two asks its text tower once how long a row is
    assert encoded == {"images": 24, "texts": 25 + sizes}, "once for learner, reference and teacher"
    said = capsys.readouterr().out
    for role in ("reference  ", "teacher    "):
        assert re.search(f"{role} reads cached .*; of images and texts its heads read the learner's states", said)
    train("align", **given | {"out": tmp_path / "again", "seed": 3})
    assert encoded == {"images": 24, "texts": 25 + 2 * sizes}
    train("align", **given | {"out": tmp_path / "anew", "features_gb": 0})
    gap = 1e-5 if precision == "fp32" else 0.1  # of 10: standardising norms raise the rounding of states, too
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "anew"), rtol=0, atol=gap)


def test_a_row_of_a_shared_tower_is_that_of_the_image_and_text_it_is_kept_under(
    towers: Path, folder: str, tmp_path: Path
) -> None:
    train("align", **(given := taught(towers, folder, tmp_path, teacher=None, head="map")))
    opened = Pretrained.open(given["reference"])
    model, source = opened.model.eval(), open_source(folder, pixels=28)
    images, texts = (rows(tmp_path / "features", kind) for kind in ("images", "texts"))
    assert (len(images), len(texts)) == (24, 25)
    for index in range(24):
        example = source.example(index)
        image = opened.frame.apply(example, None)[0][None].float() / 127.5 - 1
        ids = torch.from_numpy(opened.pipeline.fixed(example.captions[0].text))[None]
        with torch.no_grad():
            x, y = Encoded(model, {"image": image, "text": ids}).pair()
            wanted = torch.cat([x[0] * model.logit_scale.exp(), model.logit_bias.view(1)])
        np.testing.assert_allclose(images[image_key(source, index)], wanted, rtol=0, atol=2e-5)
        key = TextInput(opened.pipeline, padded=False).key(example.captions[0].text)
        np.testing.assert_allclose(texts[key], [*y[0], 1.0], rtol=0, atol=2e-6)


def test_a_run_whose_reference_shares_its_towers_goes_on_bit_for_bit(
    towers: Path, folder: str, tmp_path: Path, encoded: dict[str, int]
) -> None:
    """Also where the rows have to be made again from the states."""
    train("align", **(given := taught(towers, folder, tmp_path)))
    straight, weights = losses(tmp_path / "run"), learner(tmp_path / "run")
    for gone in ((), tuple((tmp_path / "features").glob("reference-*-heads/"))):
        for folder_gone in (*gone, tmp_path / "run" / "checkpoints" / "step-00000006"):
            shutil.rmtree(folder_gone)
        encoded.update(images=0, texts=0)
        train("align", **given, resume=True)
        assert losses(tmp_path / "run") == straight and encoded == {"images": 0, "texts": 2 * BLOCK}
        again = learner(tmp_path / "run")
        assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_two_ranks_share_a_references_towers_as_one_does(towers: Path, folder: str, tmp_path: Path) -> None:
    train("align", **(given := taught(towers, folder, tmp_path)))
    other = given | {"out": tmp_path / "two", "features": tmp_path / "b"}
    start_ranks(work, (str(tmp_path / "meeting"), other), 2)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "run"), rtol=0, atol=1e-5)
    for kind in ("images", "texts"):
        for one in (tmp_path / "features").glob(f"reference-{kind}-*-heads/states.bin"):
            assert one.read_bytes() == (tmp_path / "b" / one.parent.name / one.name).read_bytes()


@pytest.mark.parametrize(
    ("learns", "shared"),
    [
        ({"vision": "registers"}, "texts"),
        ({"text": "bert-digits"}, "images"),
        ({"resolution": 56}, "texts"),
        ({"length": 8}, "images and texts"),
        ({"freeze": "text"}, "texts"),
        ({"freeze": "none"}, None),
        ({"head": "map"}, "images and texts"),
    ],
)
def test_a_tower_that_differs_from_the_learners_encodes_for_itself(
    towers: Path,
    folder: str,
    tmp_path: Path,
    learns: dict[str, Any],
    shared: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And gives the rows that it gives without a cache."""
    learns = {name: str(towers / value) if name in ("vision", "text") else value for name, value in learns.items()}
    train("align", **(given := taught(towers, folder, tmp_path, teacher=None, distil=None, **learns)))
    said = re.search("reference   reads cached embeddings of 24 .*", capsys.readouterr().out)
    assert said is not None and said[0].partition("; of ")[2].partition(" its heads")[0] == (shared or "")
    train("align", **given | {"out": tmp_path / "anew", "features_gb": 0})
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "anew"), rtol=0, atol=1e-5)


def test_a_reference_reads_no_states_that_are_more_than_the_limit(
    towers: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """48 rows of 17 float32 are 3.3 kB, the images' states 6.1."""
    train("align", **taught(towers, folder, tmp_path, teacher=None, distil=None, features_gb=5e-6))
    said = capsys.readouterr().out
    assert re.search(r"reference   reads cached embeddings of 24 examples from [^;\n]*\n", said)
    assert "not cached: 0.0 GB are more than --features-gb 5e-06" in said
    assert not list((tmp_path / "features").glob("images-*"))


def test_a_reference_that_reads_patches_takes_no_states_without_them(
    towers: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("align", **arguments(towers, folder, tmp_path / "reference", features=tmp_path / "theirs", head="map"))
    train("align", **(given := taught(towers, folder, tmp_path, teacher=None, distil=None)))
    assert "; of texts its heads read the learner's states" in capsys.readouterr().out
    train("align", **given | {"out": tmp_path / "anew", "features_gb": 0})
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "anew"), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("locca", {"image_positions": True, "regions": 2, "captions": 2, "freeze": "vision"}),
        ("captioner", {"encoder": None, "image_positions": True, "cider_weight": 1.0}),
        ("siglip2", {"distill_start": 1.0, "freeze": "vision"}),
    ],
)
def test_a_decoder_that_reads_cached_tokens_equals_one_over_the_tower(
    towers: Path, folder: str, tmp_path: Path, recipe: str, more: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {"embed": None, "text": None, "decoder_depth": 1, "parallel": 0.5, "length": 48, "size": "tiny"} | more
    for name, cached in (("encoded", {"features_gb": 0}), ("cached", {})):
        given = arguments(towers, folder, tmp_path / name, **plain, **cached)
        train(recipe, **{key: value for key, value in given.items() if value is not None or key == "encoder"})
    assert "24 images: 0 known, encoding 24, in" in capsys.readouterr().out
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "encoded"), rtol=1e-6, atol=0)
    captions = losses(tmp_path / "cached", "loss/caption")  # the value of the rewards' term means nothing
    assert captions[-1] < captions[0] - 0.1, "it learns"
    tower, name = load_file(towers / "dinov2" / "model.safetensors"), "encoder.layer.0.mlp.fc1.weight"
    assert torch.equal(learner(tmp_path / "cached")[f"model.vision.tower.{name}"], tower[name])


def test_cached_texts_stand_beside_the_columns_of_a_row(
    towers: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("align", **arguments(towers, folder, tmp_path / "run", freeze="text"))
    [texts] = (tmp_path / "features").glob("texts-*/")
    source, pipeline = open_source(folder), text_pipeline(towers / "bert", "bert", 24)
    plain = source.example
    monkeypatch.setattr(source, "example", lambda *given: replace(plain(*given), extras={"label": "photo"}))
    example = CachedSource(source, texts=(texts, TextInput(pipeline, padded=False)), side=28).example(0)
    assert example.extras["label"] == "photo"
    assert example.extras["text_states"][example.captions[0].text].shape == (32,)
    assert torch.equal(example.image, plain(0).image)


def test_a_run_on_cached_features_remembers_the_same_images(towers: Path, folder: str, tmp_path: Path) -> None:
    """For `eval`, which says what of the held-out images the run has read."""
    seen = []
    for name, more in {"cached": {}, "encoded": {"features_gb": 0}}.items():
        train("align", **arguments(towers, folder, tmp_path / name, **more))
        seen.append(read_seen(RunFolder(tmp_path / name).seen).tolist())
    assert seen[0] == seen[1] and len(seen[0]) > 1


@pytest.mark.parametrize("more", [{}, {"lora": 2}], ids=["whole", "LoRA"])
def test_another_librarys_towers_learn_at_their_share_of_the_rate(
    towers: Path, folder: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    """Adam's first step is the rate: a tenth of it in the tower, all of it in the heads."""
    name = "encoder.layer.0.mlp.fc1.lora_B.default.weight" if more else "encoder.layer.0.mlp.fc1.bias"
    steps = []
    for share in (1.0, 0.1):
        out = tmp_path / str(share)
        given = arguments(towers, folder, out, freeze="text", tower_lr=share, warmup=0, keep_last=9, **more)
        train("align", **given | {"steps": 2, "save_every": 1, "weight_decay": 0.0})
        first = load_file(min((out / "checkpoints").iterdir()) / "learner.safetensors")
        before = 0.0 if more else load_file(towers / "dinov2" / "model.safetensors")[name]
        steps.append([(first[f"model.vision.tower.{name}"] - before).abs().max(), first])
    assert steps[0][0] == pytest.approx(1e-3, rel=0.01) and steps[1][0] == pytest.approx(1e-4, rel=0.01)
    assert torch.equal(steps[0][1]["model.vision.head.out.4.bias"], steps[1][1]["model.vision.head.out.4.bias"])


def test_a_run_that_goes_on_with_another_librarys_tower_keeps_its_patches(
    towers: Path, folder: str, tmp_path: Path
) -> None:
    """--size gives the decoder its shape; the tower that comes with --init reads patches of 14 pixels all the same."""
    more = {
        "image_positions": True,
        "freeze": "vision",
        "decoder_depth": 1,
        "length": 48,
        "resolution": 112,
        "size": "64x2x128x2/16",
    }
    given = arguments(towers, folder, tmp_path / "run", embed=None, text=None, **more)
    given = {key: value for key, value in given.items() if value is not None}
    train("locca", **given)
    train("locca", **given | {"vision": None, "init": str(tmp_path / "run"), "out": tmp_path / "more"})
    position = learner(tmp_path / "more")["model.decoder.image_position"]
    assert position.shape == learner(tmp_path / "run")["model.decoder.image_position"].shape == (64, 32)


def test_a_resumed_run_with_dropout_is_the_straight_run_bit_for_bit(towers: Path, folder: str, tmp_path: Path) -> None:
    pair = arguments(towers, folder, tmp_path / "run", dropout=0.5, save_every=2, keep_last=9)
    train("align", **pair)
    straight, weights = losses(tmp_path / "run"), learner(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    train("align", **pair, resume=True)
    assert losses(tmp_path / "run") == straight
    again = learner(tmp_path / "run")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_the_heads_average_is_what_every_step_left_of_it(towers: Path, folder: str, tmp_path: Path) -> None:
    """A <- m A + (1 - m) H, by hand from the checkpoints of a run that saves each step; the exported head is A."""
    given = arguments(towers, folder, tmp_path / "run", head_ema=0.5, save_every=1, keep_last=9)
    train("align", **given)
    steps = [load_file(path / "learner.safetensors") for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    pairs = {name: name.replace(".average.copy.", ".head.") for name in steps[0] if ".average." in name}
    assert {name.split(".")[1] for name in pairs} == {"vision", "text"} and len(steps) == 4
    for name, learned in pairs.items():
        average = steps[0][name]
        for saved in steps[1:]:
            average = 0.5 * average + 0.5 * saved[learned]
            torch.testing.assert_close(saved[name], average, rtol=1e-5, atol=1e-7)
    moved = [name for name in pairs if not torch.equal(steps[-1][name], steps[-1][pairs[name]])]
    assert len(moved) > len(pairs) / 2, "a test that can fail"
    for place in (tmp_path / "run" / "checkpoints" / "step-00000004", tmp_path / "run" / "model"):
        head = Pretrained.open(str(place)).model.vision.head.state_dict()
        assert all(torch.equal(x, steps[-1][f"model.vision.head.average.copy.{name}"]) for name, x in head.items())


def test_a_head_is_judged_by_its_average_and_trained_by_itself() -> None:
    head, seen = AveragedHead(torch.nn.Linear(2, 2)), torch.ones(1, 2)
    before = head(seen)
    with torch.no_grad():
        head.head.weight += 1
    assert torch.equal(head.eval()(seen), before)
    torch.testing.assert_close(head.train()(seen), before + 2)


def test_a_resumed_run_goes_on_with_the_heads_average(towers: Path, folder: str, tmp_path: Path) -> None:
    given = arguments(towers, folder, tmp_path / "run", head_ema=0.5, save_every=2, keep_last=9)
    train("align", **given)
    straight = learner(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    train("align", **given, resume=True)
    assert all(torch.equal(learner(tmp_path / "run")[name], tensor) for name, tensor in straight.items())


@pytest.mark.parametrize("more", [{"captions": 2}, {"head_ema": 0.5}, {"features_gb": 0}])
def test_heads_begin_with_norms_by_which_their_numbers_are_0_on_average_of_deviation_1(
    towers: Path, folder: str, tmp_path: Path, more: dict[str, Any]
) -> None:
    train("align", **arguments(towers, folder, tmp_path / "cached", steps=1))
    train("align", **arguments(towers, folder, tmp_path / "run", steps=1, lr=1e-9) | more)
    model = Pretrained.open(str(tmp_path / "run" / "model")).model
    stores = {
        kind: StateStore(next(tmp_path.glob(f"features/{kind}-*/states.bin")).parent) for kind in ("images", "texts")
    }
    none = TextInput(text_pipeline(towers / "bert", "bert", 24), padded=False).key("")
    images = torch.from_numpy(np.stack([stores["images"][key] for key in stores["images"].keys]))
    texts = torch.from_numpy(np.stack([stores["texts"][key] for key in stores["texts"].keys if key != none]))
    read = {model.vision.head.out: images.flip(1).flatten(1), model.text.head: texts.flatten(1)}
    for head, states in read.items():
        plain = torch.nn.functional.layer_norm(states, states.shape[-1:])
        assert len(states) == 24 and plain.mean(0).abs().mean() > 0.3, "a test that can fail"
        standard = head[0](states)
        torch.testing.assert_close(standard.mean(0), torch.zeros_like(states[0]), rtol=0, atol=1e-3)
        torch.testing.assert_close(standard.std(0), torch.ones_like(states[0]), rtol=0, atol=1e-3)


def test_heads_of_another_run_keep_their_norms(towers: Path, folder: str, tmp_path: Path) -> None:
    train("align", **arguments(towers, folder, tmp_path / "first", lr=0.1))
    given = arguments(towers, folder, tmp_path / "second", steps=1, lr=1e-9, init=str(tmp_path / "first"))
    train("align", **{name: value for name, value in given.items() if name not in ("vision", "text")})
    first, second = (Pretrained.open(str(tmp_path / run / "model")).model for run in ("first", "second"))
    torch.testing.assert_close(second.text.head[0].weight, first.text.head[0].weight, rtol=0, atol=1e-6)


def test_an_average_without_heads_is_refused(towers: Path, folder: str, tmp_path: Path) -> None:
    decoder = {"freeze": "vision", "decoder_depth": 1, "length": 48, "size": "tiny", "head_ema": 0.9}
    given = arguments(towers, folder, tmp_path / "run", **decoder)
    with pytest.raises(UserError, match="--head-ema is for heads"):
        train("locca", **{name: value for name, value in given.items() if name not in ("text", "embed")})


def test_a_run_from_another_sees_images_as_that_did(
    towers: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resized as the tower was trained, so that it reads what the first run has cached."""
    given = arguments(towers, folder, tmp_path / "first")
    train("align", **given)
    capsys.readouterr()
    more = {name: value for name, value in given.items() if name not in ("vision", "text", "embed")}
    train("align", **more | {"out": tmp_path / "second", "init": str(tmp_path / "first"), "steps": 1})
    assert "GB of images' states" in (said := capsys.readouterr().out) and "encoding" not in said


def test_an_interrupted_cache_is_finished_with_the_same_bytes(
    towers: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_writer, "IMAGES_AT_ONCE", 5)
    train("align", **arguments(towers, folder, tmp_path / "whole", features=tmp_path / "a"))
    append, blocks = StoreWriter.append, [0]

    def stops(self: Any, *block: Any) -> None:
        (lock,) = (tmp_path / "b").glob("*.lock")
        with lock.open("w") as opened:
            assert not lock_descriptor(opened.fileno(), blocking=False), "another run would write the same files"
        blocks[0] += 1
        if blocks[0] < 4:
            return append(self, *block)
        with (self.folder / "states.bin").open("ab") as file, (self.folder / "blocks.jsonl").open("ab") as lines:
            file.write(b"half of the rows"), lines.write(b"half of a line")
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "append", stops)
    with pytest.raises(KeyboardInterrupt):
        train("align", **arguments(towers, folder, tmp_path / "cut", features=tmp_path / "b"))
    monkeypatch.setattr(StoreWriter, "append", append)
    capsys.readouterr()
    train("align", **arguments(towers, folder, tmp_path / "again", features=tmp_path / "b"))
    assert "24 images: 15 known, encoding 9, in" in capsys.readouterr().out
    whole, again = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).glob("*/states.bin")}
        for name in "ab"
    )
    assert len(whole) == 2 and whole == again
    assert losses(tmp_path / "whole") == losses(tmp_path / "again")


def test_a_row_without_a_caption_has_no_text_in_the_cache(towers: Path, folder: str, tmp_path: Path) -> None:
    copied = tmp_path / "photos"
    shutil.copytree(folder, copied)
    lines = (copied / "metadata.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    lines[0] = json.dumps({"file_name": row["file_name"], "split": "train", "label": "a square"})
    (copied / "metadata.jsonl").write_text("\n".join(lines))
    for name, more in {"encoded": {"features_gb": 0}, "cached": {}}.items():
        summary = train("align", **arguments(towers, str(copied), tmp_path / name, batch_size=24, steps=2, **more))
        assert not summary["skipped_steps"]
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "encoded"), rtol=1e-6, atol=0)


def test_another_tower_resolution_or_precision_encodes_all_and_other_texts_none(
    towers: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on the states of another one learns what it would learn by itself.

    Towers of one make are others by their weights, by what their config says of them, the pixels' mean or the pooling.
    """
    for name in ("weights", "config", "mean", "text-weights", "pooling"):
        shutil.copytree(towers / ("bert" if name in ("text-weights", "pooling") else "dinov2"), tmp_path / name)
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    (tmp_path / "config" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-2}))
    for name in ("weights", "text-weights"):
        stored = load_file(tmp_path / name / "model.safetensors")
        next(iter(stored.values())).view(-1)[0] += 1
        save_file(stored, tmp_path / name / "model.safetensors", {"format": "pt"})
    processor = BitImageProcessor.from_pretrained(towers / "dinov2")
    processor.image_mean = [0.4, 0.4, 0.4]
    processor.save_pretrained(tmp_path / "mean")
    (tmp_path / "pooling" / "1_Pooling").mkdir()
    (tmp_path / "pooling" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    copied, rest = Path(shutil.copytree(folder, tmp_path / "photos")), tmp_path / "runs"
    rows = [json.loads(line) for line in (copied / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        row["captions"] = [row["captions"][0].replace("square", "box"), "a picture"]
    (copied / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images, texts = list[int](), list[int]()
    for kind, reads in ((PretrainedVision, images), (PretrainedText, texts)):
        read = kind.read
        monkeypatch.setattr(kind, "read", lambda self, x, read=read, to=reads: to.append(len(x)) or read(self, x))
    for name, more, wanted in (
        ("first", {}, (24, 25)),
        ("again", {"length": 30}, (0, 0)),
        ("other-texts", {"data": str(copied)}, (0, 25)),
        ("same-texts", {"data": [folder, str(copied)]}, (0, 0)),
        ("patches", {"head": "map"}, (24, 0)),
        ("tower", {"vision": str(towers / "registers")}, (24, 0)),
        ("text-tower", {"text": str(towers / "bert-digits")}, (0, 25)),
        ("weights", {"vision": str(tmp_path / "weights")}, (24, 0)),
        ("config", {"vision": str(tmp_path / "config")}, (24, 0)),
        ("mean", {"vision": str(tmp_path / "mean")}, (24, 0)),
        ("text-weights", {"text": str(tmp_path / "text-weights")}, (0, 25)),
        ("pooling", {"text": str(tmp_path / "pooling")}, (0, 25)),
        ("resolution", {"resolution": 56}, (24, 0)),
        ("precision", {"precision": "bf16"}, (24, 25)),
    ):
        images.clear(), texts.clear()
        train("align", **arguments(towers, folder, rest / name, steps=2) | more)
        assert (sum(images), sum(texts)) == wanted, name
    train("align", **arguments(towers, str(copied), rest / "encoded", steps=2, features_gb=0))
    np.testing.assert_allclose(losses(rest / "other-texts"), losses(rest / "encoded"), rtol=1e-6, atol=0)
    assert losses(rest / "again") == losses(rest / "first")


def work(rank: int, meeting: str, given: dict[str, Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    train("align", **given)
    os._exit(0)  # gloo's threads may wait for ever, at the end, for a rank that has gone


def test_two_ranks_read_what_the_first_has_encoded_and_equal_one(towers: Path, folder: str, tmp_path: Path) -> None:
    given = arguments(towers, folder, tmp_path / "one", features=tmp_path / "a")
    train("align", **given)
    start_ranks(work, (str(tmp_path / "meeting"), given | {"out": tmp_path / "two", "features": tmp_path / "b"}), 2)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-6, atol=0)
    [one], [two] = ((tmp_path / name).glob("images-*/states.bin") for name in "ab")
    assert one.read_bytes() == two.read_bytes() and one.stat().st_size == 24 * 2 * 32 * 4


def test_states_of_a_bf16_run_take_two_bytes_each_and_are_read_as_such(
    towers: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 images of two tokens, and 25 texts, the empty one among them, all of 32 numbers, made by products in bf16."""
    read, half = dict[str, torch.dtype](), list[bool]()
    for tower in (PretrainedVision, PretrainedText):
        states = tower.states
        monkeypatch.setattr(
            tower,
            "states",
            lambda self, x, states=states: half.append(torch.is_autocast_enabled("cpu")) or states(self, x),
        )

    def noted(batch: Batch, device: torch.device) -> Batch:
        read.update({name: field.dtype for name, field in batch.items()})
        return to_device(batch, device)

    monkeypatch.setattr(loop, "to_device", noted)
    train("align", **arguments(towers, folder, tmp_path / "run", steps=1, precision="bf16"))
    assert read["image_states"] == read["text_states"] == torch.bfloat16 and len(half) > 1 and all(half)
    for kind, numbers in (("images", 24 * 2 * 32), ("texts", 25 * 32)):
        [file] = (tmp_path / "features").glob(f"{kind}-*/states.bin")
        assert file.stat().st_size == 2 * numbers


def test_a_pair_and_a_decoder_share_what_their_image_tower_made(
    towers: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = {"freeze": "vision", "decoder_depth": 1, "length": 48, "size": "tiny"}
    given = arguments(towers, folder, tmp_path / "boxes", **decoder)
    train("locca", **{name: value for name, value in given.items() if name not in ("text", "embed")})
    assert "24 images: 0 known, encoding 24, in" in capsys.readouterr().out
    train("align", **arguments(towers, folder, tmp_path / "pair", head="map"))
    assert "24 images: 24 known, in" in capsys.readouterr().out
    train("align", **arguments(towers, folder, tmp_path / "encoded", head="map", features_gb=0))
    np.testing.assert_allclose(losses(tmp_path / "pair"), losses(tmp_path / "encoded"), rtol=1e-6, atol=0)


def test_an_aligned_pair_opens_again_with_the_same_embeddings(towers: Path, folder: str, tmp_path: Path) -> None:
    train("align", **arguments(towers, folder, tmp_path / "run"))
    model = opensiglip.load(tmp_path / "run")
    images, texts = model.embed_images([photo(1), photo(2)]), model.embed_texts(TEXTS)
    assert images.shape == (2, 16) and texts.shape == (3, 16)
    with pytest.raises(UserError, match="can't compare patches with texts: its pooling is of all patches at once"):
        model.similarity(photo(1), TEXTS[0])
    reread = Model.from_pretrained(tmp_path / "run" / "model").eval()
    with torch.no_grad():
        pooled = reread.vision(in_our_range(photo(1))).pooled
    torch.testing.assert_close(torch.nn.functional.normalize(pooled, dim=-1)[0], torch.as_tensor(images[0]))
    assert RunFolder(tmp_path / "run").ended, "what opened above is the model, not the newest checkpoint"
    for part in ("vision", "text"):  # each tower is a plain transformers folder
        assert AutoModel.from_pretrained(tmp_path / "run" / "model" / part) is not None
    kept = json.loads((tmp_path / "run" / "model" / "preprocessor_config.json").read_text())
    assert kept["image_mean"] == MEAN and kept["resample"] == 3, "the processor is that of the tower"


@pytest.mark.parametrize(("vision", "head"), [("dinov2", "mlp"), ("registers", "map"), ("vit", "linear")])
@pytest.mark.filterwarnings("default")  # of the other library, about its own parts
def test_other_libraries_give_the_embeddings_of_an_aligned_pair(
    towers: Path, folder: str, tmp_path: Path, vision: str, head: str
) -> None:
    """Texts by sentence-transformers, which the folder text/ is made for; images and texts by onnxruntime."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pair = arguments(towers, folder, tmp_path / "run", vision=str(towers / vision), head=head)
    train("align", **pair)
    ours = opensiglip.load(tmp_path / "run")
    texts, images = np.asarray(ours.embed_texts(TEXTS)), np.asarray(ours.embed_images([photo(1), photo(2)]))
    place = str(tmp_path / "run" / "model" / "text")
    theirs = sentence_transformers.SentenceTransformer(place, local_files_only=True, device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), texts, rtol=0, atol=1e-5)
    np.testing.assert_allclose(theirs.encode(TEXTS[:1]), texts[:1], rtol=0, atol=1e-5)
    long = "two red apples " * 12
    np.testing.assert_allclose(theirs.encode([long]), np.asarray(ours.embed_texts([long])), rtol=0, atol=1e-5)
    assert np.abs(texts[0] - texts[1]).max() > 0.01, "texts differ, so this compared something"
    export(str(tmp_path / "run"), out=tmp_path / "onnx", format="onnx")
    sessions = {
        part: onnxruntime.InferenceSession(tmp_path / "onnx" / f"{part}_encoder.onnx") for part in ("image", "text")
    }
    pipeline = text_pipeline(towers / "bert", "bert", 24)
    ids = np.stack([pipeline.fixed(text) for text in TEXTS])
    np.testing.assert_allclose(sessions["text"].run(None, {"input_ids": ids})[0], texts, rtol=0, atol=1e-5)
    seen = torch.cat([in_our_range(photo(1)), in_our_range(photo(2))]).numpy()
    np.testing.assert_allclose(sessions["image"].run(None, {"pixel_values": seen})[0], images, rtol=0, atol=1e-5)


def test_a_tuned_tower_moves_and_a_locked_one_does_not(towers: Path, folder: str, tmp_path: Path) -> None:
    train("align", **arguments(towers, folder, tmp_path / "run", freeze="text"))
    after, name = learner(tmp_path / "run"), "encoder.layer.0.mlp.fc1.weight"
    before = load_file(towers / "dinov2" / "model.safetensors")
    assert not torch.equal(after[f"model.vision.tower.{name}"], before[name])
    word = "embeddings.word_embeddings.weight"
    assert torch.equal(after[f"model.text.tower.{word}"], load_file(towers / "bert" / "model.safetensors")[word])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"vision": "/no/such"}, "/no/such: there is no such folder"),
        ({"resolution": 30}, "--resolution 30 is not a multiple of the patch size 14; try 28"),
        ({"length": 60}, "--length 60 is longer than .* reads; give at most 40"),
        ({"tokenizer": "gpt2"}, "--tokenizer is not the one that the tower of --text was trained with"),
        ({"init": "x"}, "--init and --vision or --text both set the towers"),
        ({"features": Path(__file__)}, r"--features .*test_align.py can't be written to \(Not a directory\); name"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    towers: Path, folder: str, tmp_path: Path, more: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train("align", **arguments(towers, folder, tmp_path / "run", **more))


@pytest.mark.parametrize(
    ("recipe", "flags", "sentence"),
    [
        ("align", {"lora": 2, "length": 24}, "--lora: all towers are frozen"),
        ("align", {"tower_lr": 0.1, "length": 24}, "--tower-lr: all towers are frozen"),
        ("lit", {"encoder": None}, "random weights have nothing to teach; give --vision or --init.$"),
        ("captioner", {"encoder": None}, "give --vision or --init, or --no-frozen to train it"),
        ("pali", {}, "give --vision or --init, or --no-frozen to train it"),
        ("coca", {"text": "bert"}, "--vision and --text: CoCa"),
        ("coca", {"vision": "vit"}, "--vision and --text: CoCa"),
        ("siglip2_naflex", {"vision": "vit"}, "reads square images"),
    ],
)
def test_a_tower_or_flag_that_a_recipe_has_no_use_for_is_refused(
    towers: Path, folder: str, tmp_path: Path, recipe: str, flags: dict[str, Any], sentence: str
) -> None:
    given = {"vision": "vit", "text": "bert"} if recipe == "align" else {}
    places = {name: towers / value if name in ("vision", "text") else value for name, value in (given | flags).items()}
    with pytest.raises(UserError, match=sentence):
        train(recipe, data=[folder], out=tmp_path / "run", size="tiny", workers=0, **places)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(ViTModel, ViTConfig), (Dinov2Model, Dinov2Config), (DINOv3ViTModel, DINOv3ViTConfig), (BertModel, BertConfig)],
)
def test_lora_lies_beside_every_matrix_of_a_towers_layers(kind: Any, settings: Any) -> None:
    """Whatever transformers calls them: DINOv2's output projection has had several names."""
    tower = kind(settings(**SHAPE))
    layers = [name for name, module in tower.named_modules() if isinstance(module, torch.nn.Linear) and ".0." in name]
    lora.add(tower, 2)
    adapted = [name for name, module in tower.named_modules() if hasattr(module, "lora_A") and ".0." in name]
    assert len(layers) == 6 and adapted == layers
    assert all("lora_" in name for name, weight in tower.named_parameters() if weight.requires_grad)


def test_a_text_model_is_no_image_tower(towers: Path, folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an image transformer"):
        train("align", **arguments(towers, folder, tmp_path / "run", vision=str(towers / "bert")))


def test_every_caption_of_an_image_is_its_positive_and_none_its_negative(
    towers: Path, folder: str, tmp_path: Path
) -> None:
    copied = tmp_path / "photos"
    shutil.copytree(folder, copied)
    rows = [json.loads(line) for line in (copied / "metadata.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["captions"] = [f"a {word} thing" for word in ("red", "big", "fine")[: 1 + number % 3]]
    (copied / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, more in {"encoded": {"features_gb": 0}, "cached": {}}.items():
        train("align", **arguments(towers, str(copied), tmp_path / name, captions=3, **more))
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "encoded"), rtol=0, atol=1e-5)


def test_several_captions_equal_as_many_rows_of_the_image() -> None:
    torch.manual_seed(0)
    image, text = torch.randn(3, 4), torch.randn(6, 4)
    shared: dict[str, Any] = {
        "has_text": torch.tensor([True, True, True, False, True, True]),
        "group": torch.tensor([5, 5, 6, 6, 7, 7]),
    }
    found = []
    for images in (image, image.repeat_interleave(2, 0)):
        encoded = Encoded(Model.new(PLAIN, 300), shared, passes={
            "image:image": Features(images, images[:, None]), "text:text": Features(text, text[:, None]),
        })  # fmt: skip
        term = Sigmoid()
        found.append(term.compare(*term.features(encoded)))
    torch.testing.assert_close(found[0], found[1])
    a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (image.repeat_interleave(2, 0), text))
    logits = 10 * a @ b.T - 10
    same = shared["group"][:, None] == shared["group"]
    pairs = torch.nn.functional.softplus(logits).masked_fill(same, 0) + torch.diag(
        torch.nn.functional.softplus(-logits.diag())
    )
    has = shared["has_text"]
    torch.testing.assert_close(found[0], pairs[has][:, has].sum())


def test_images_set_aside_choose_the_best_and_are_never_trained_on(
    towers: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    drawn = Visit.draw.__func__  # type: ignore[attr-defined]

    def noted(cls: Any, example: Any, *rest: Any) -> Any:
        seen.append(example.name)
        return drawn(cls, example, *rest)

    monkeypatch.setattr(Visit, "draw", classmethod(noted))
    reads: list[int] = []
    read = PretrainedVision.read
    monkeypatch.setattr(PretrainedVision, "read", lambda self, x: reads.append(len(x)) or read(self, x))
    metric = "eval/retrieval/image_to_text_r1"
    judged = {"set_aside": 6, "eval_every": 2, "keep_best": metric, "steps": 8}
    train("align", **arguments(towers, folder, tmp_path / "run", **judged))
    kept, aside = split_off(open_source(folder, languages=None, pixels=28), 6)
    names = [open_source(folder, languages=None, pixels=28).example(row).name for row in aside]
    assert len(aside) == 6 and sorted(kept + aside) == list(range(24))
    assert len(set(seen)) == 18 and not set(names) & set(seen)
    assert sum(reads) == 24 + 6, "the tower reads what is set aside once, for four judgements"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(metric in row for row in rows) == 4


def test_what_frozen_towers_made_of_held_out_images_serves_later_runs(
    towers: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []
    read = remembered._read
    monkeypatch.setattr(remembered, "_read", lambda path: (found.append((it := read(path)) is not None), it)[1])
    for name, more, hit in (
        ("first", {}, False),
        ("second", {}, True),
        ("patches", {"head": "map"}, False),
        ("plain", {"features_gb": 0}, None),
        ("damaged", {}, False),
    ):
        found.clear()
        if name == "damaged":
            for file in (tmp_path / "features" / "judged").iterdir():
                file.write_bytes(b"damaged")
        summary = train("align", **arguments(towers, folder, tmp_path / name, held_out=8, **more))
        judged = summary["held_out"]["retrieval"]
        if name == "first":
            first = judged
        assert name == "patches" or judged == first
        assert hit is None and not found or (hit in found if name != "patches" else False in found)


def test_the_bench_of_features_says_pace_and_gap(towers: Path, folder: str, tmp_path: Path) -> None:
    words = ["--vision", str(towers / "dinov2"), "--text", str(towers / "bert"), "--data", folder, "--length", "24"]
    few = ["--batch-size", "8", "--count", "2", "--rounds", "1", "--device", "cpu", "--head", "map"]
    places = ["--features", str(tmp_path / "features"), "--out", str(tmp_path / "out")]
    assert main(["bench", "features", *words, *few, *places]) == 0
    tower, cached = json.loads((tmp_path / "out" / "features.json").read_text())["rows"]
    assert tower["per_second"] > 0 and cached["facts"]["images"].endswith("x")
    assert 0 <= cached["facts"]["gap"] < 1e-2


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"set_aside": 13, "eval_every": 1}, "--set-aside 13 is more than half of the 24 examples"),
        ({"set_aside": 3}, "--set-aside is for evaluations during training; give --eval-every too"),
    ],
)
def test_what_can_not_be_set_aside_is_said(
    towers: Path, folder: str, tmp_path: Path, more: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train("align", **arguments(towers, folder, tmp_path / "run", **more))


def test_damaged_features_are_encoded_anew(
    towers: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the damaged block, and of the block of which no whole line is left."""
    monkeypatch.setattr(cache_writer, "IMAGES_AT_ONCE", 5)
    train("align", **arguments(towers, folder, tmp_path / "first"))
    [place] = (tmp_path / "features").glob("images-*/")
    whole = (place / "states.bin").read_bytes()
    (place / "states.bin").write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    lines = (place / "blocks.jsonl").read_bytes()
    (place / "blocks.jsonl").write_bytes(lines.replace(b'"first": 10', b'"first": 15'))
    capsys.readouterr()
    train("align", **arguments(towers, folder, tmp_path / "second"))
    said = capsys.readouterr().out
    assert "states.bin is not as it was written: encoded again" in said and "24 images: 14 known, encoding 10" in said
    assert losses(tmp_path / "second") == losses(tmp_path / "first")
    train("align", **arguments(towers, folder, tmp_path / "third"))
    assert "24 images: 24 known" in (said := capsys.readouterr().out) and "as it was written" not in said


def test_features_with_patches_serve_heads_that_read_none(
    towers: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("align", **arguments(towers, folder, tmp_path / "map", head="map"))
    capsys.readouterr()
    read = list[int | None]()

    def noted(*given: Any, tokens: int | None, **more: Any) -> CachedSource:
        read.append(tokens)
        return CachedSource(*given, tokens=tokens, **more)

    monkeypatch.setattr(feature_cache, "CachedSource", noted)
    for head in ("mlp", "linear"):
        train("align", **arguments(towers, folder, tmp_path / head, head=head))
        train("align", **arguments(towers, folder, tmp_path / f"{head}-encoded", head=head, features_gb=0))
        np.testing.assert_allclose(losses(tmp_path / head), losses(tmp_path / f"{head}-encoded"), rtol=1e-6, atol=0)
    assert "encoding" not in capsys.readouterr().out and read == [2, 2], "the mean and the class token alone"
    train("align", **arguments(towers, folder, tmp_path / "less", features_gb=1e-5))  # 24 images of 2 tokens, not of 6
    assert "24 images: 0 known, encoding 24" in capsys.readouterr().out


def test_what_is_cached_is_frozen_and_always_seen_the_same(towers: Path, folder: str, tmp_path: Path) -> None:
    train("align", **arguments(towers, folder, tmp_path / "run", steps=1))
    model: Any = Pretrained.open(str(tmp_path / "run")).model
    model.vision.tower.requires_grad_(False), model.text.tower.requires_grad_(False)
    frame, longer = Frame(28), SizeSchedule((8, 16), (0.0, 0.5))

    def frozen(frame: Frame = frame, *more: Field, lengths: SizeSchedule | None = None) -> tuple[bool, bool]:
        recipe: Any = SimpleNamespace(frame=frame, fields=[Images(frame), Texts(), *more], lengths=lengths)
        found = feature_cache.Frozen.of(model, recipe)
        return found.images, found.texts

    assert frozen() == frozen(replace(frame, flip=0.5)) == (True, True)
    assert frozen(replace(frame, crop_area=0.5)) == (False, True)
    assert frozen(lengths=longer) == (True, False)
    assert frozen(frame, PatchMask(28, 14, ratio=0.5, start=0.0)) == (False, False)
    model.vision.tower.requires_grad_(True)
    assert frozen() == (False, True)
    model.text.tower.requires_grad_(True)
    assert frozen() == (False, False)


def test_features_that_the_disk_has_no_room_for_are_not_written(
    towers: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "room_for", lambda folder, wanted: False)
    train("align", **arguments(towers, folder, tmp_path / "run", steps=1))
    assert "are more than the disk of" in capsys.readouterr().out
    assert not list((tmp_path / "features").glob("images-*"))


def test_states_written_anew_without_patches_are_not_taken_for_those_with(
    towers: Path, folder: str, tmp_path: Path
) -> None:
    copied = tmp_path / "photos"
    shutil.copytree(folder, copied)
    train("align", **arguments(towers, str(copied), tmp_path / "first", head="map"))
    photo(7).save(copied / "0.png")
    train("align", **arguments(towers, str(copied), tmp_path / "narrow", head="mlp"))
    for name, more in (("again", {}), ("encoded", {"features_gb": 0})):
        train("align", **arguments(towers, str(copied), tmp_path / name, head="map", **more))
    np.testing.assert_allclose(losses(tmp_path / "again"), losses(tmp_path / "encoded"), rtol=1e-6, atol=0)


def test_remembered_states_are_of_the_pooling_and_the_pixels_that_they_were_read_by(towers: Path) -> None:
    memory, ids = remembered.Memory(), torch.tensor([[1, 5, 6, 2]])
    bert, vit = BertModel.from_pretrained(towers / "bert"), ViTModel.from_pretrained(towers / "vit")
    for pooling in ("mean", "cls"):
        text = PretrainedText(bert, PairShape(embed=8, pooling=pooling), 0)
        assert torch.equal(remembered.Remembered(text, memory)(ids).pooled, text(ids).pooled)
    pixels = in_our_range(photo())
    for mean in ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3)):
        vision = PretrainedVision(vit, mean=mean, std=STD, pair=PairShape(embed=8))
        assert torch.equal(remembered.Remembered(vision, memory)(pixels).pooled, vision(pixels).pooled)


def test_runs_that_keep_the_same_states_at_once_do_not_end_each_other(tmp_path: Path) -> None:
    ours, theirs = remembered.Memory(tmp_path / "judged"), remembered.Memory(tmp_path / "judged")
    assert ours.once("k", lambda: theirs.once("k", lambda: torch.ones(2))).tolist() == [1, 1]
    (tmp_path / "file").touch()
    assert remembered.Memory(tmp_path / "file" / "judged").once("k", lambda: torch.ones(2)).tolist() == [1, 1]


def test_rows_set_aside_leave_shards_shards_and_half_to_train_on() -> None:
    source = Shards([3, 2, 4], ["a", "b", "c", "d", "e", "f", "g", "h", "i"])
    part = Subset(source, [0, 2, 5, 6, 8])
    assert part.shards == [2, 3] and part.lanes == 2 and len(part) == 5
    with pytest.raises(UserError, match="--set-aside 2 takes 9 of the 9"):
        split_off(Shards([9], ["same"] * 9), 2)


class Shards(Source):
    """Rows of these groups in shards, nothing more."""

    def __init__(self, shards: list[int], groups: list[str]) -> None:
        self.name, self.languages, self.skipped = "shards", ("en",), Counter[str]()
        self.shards, self.groups, self.lanes = shards, groups, 2

    def __len__(self) -> int:
        return len(self.groups)

    def example(self, index: int, language: str | None = None) -> Example:
        return Example(torch.zeros(3, 2, 2, dtype=torch.uint8), ())

    def group(self, index: int) -> str:
        return self.groups[index]

    def texts(self) -> Iterator[str]:
        return iter(())

    def describe(self) -> dict[str, Any]:
        return {}


def test_a_run_from_features_is_judged_by_the_memory_that_it_needs(
    towers: Path, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "free_memory", lambda device: 64 * 2**20)
    big = {"batch_size": 24, "head": "linear", "resolution": 224, "memory_check": True}
    train("align", **arguments(towers, folder, tmp_path / "cached", **big))
    assert "a rank by estimate, 0.06 GiB free" in capsys.readouterr().out
    with pytest.raises(UserError, match="this run needs"):
        train("align", **arguments(towers, folder, tmp_path / "encoded", features_gb=0, freeze="none", **big))
