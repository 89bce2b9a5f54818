"""Image towers and sentence encoders of transformers, for `--vision` and `--text`: what their folders say of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from opensiglip.checkpoints.source import image_processor, read_json
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.sizes import Architecture, PairShape, Shape

LARGEST = 2**16  # of any number of a config
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as image processors write them
POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}  # sentence-transformers' names
LENGTH = 64  # tokens of a text, where a sentence encoder reads more: captions are short


def image_side(place: Path, name: str) -> int:
    """Pixels of a side that an image tower is fed by default: its processor's, in whole patches. Raises UserError."""
    _, patch = image_shape(place, name)
    size = image_processor(place)
    size = (size.get("do_center_crop") and size.get("crop_size")) or size.get("size") or {}
    height = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
    side = height or read_json(place / "config.json").get("image_size") or 224
    return max(1, _number(side, name, "image size") // patch) * patch


def with_vision(networks: Architecture, place: Path, name: str) -> Architecture:
    """A recipe's networks with an image tower of another make in the place of its own.

    Raises UserError where its config or image processor can't be read, or the resolution is not of whole patches.
    """
    shape, patch = image_shape(place, name)
    if networks.resolution % patch:
        near = max(1, networks.resolution // patch) * patch
        raise UserError(
            f"--resolution {networks.resolution} is not a multiple of {name}'s patch size {patch}; try {near}."
        )
    facts = image_processor(place)
    mean, std = (_colours(facts.get(f"image_{what}"), name) for what in ("mean", "std"))
    resample = RESAMPLE.get(facts.get("resample", 2), "bilinear")
    pair = replace(networks.pair or PairShape(), vision=str(place), mean=mean, std=std)
    return replace(networks, vision=shape, patch=patch, pair=pair, interpolation=resample, short_start=False)


def with_text(networks: Architecture, place: Path, name: str) -> Architecture:
    """A recipe's networks with a sentence encoder in the place of the text tower. Raises UserError."""
    config = read_json(place / "config.json")
    if networks.text is None:
        raise UserError(f"--text {name}: the recipe has no text tower.")
    shape = _shape(config, name, "--text")
    longest = _number(config.get("max_position_embeddings"), name, "max_position_embeddings")
    longest -= 2 if config.get("model_type") in ("xlm-roberta", "roberta") else 0  # whose positions begin at 2
    if networks.length > longest:
        raise UserError(f"--length {networks.length} is longer than {name} reads; give at most {longest}.")
    modes = read_json(place / "1_Pooling" / "config.json")
    pooling = next((kind for mode, kind in POOLING.items() if modes.get(mode)), "mean")
    pair = replace(networks.pair or PairShape(), text=str(place), pooling=pooling)
    if pair.vision is None:  # texts come to where our images are
        pair = replace(pair, embed=networks.vision.width)
    return replace(networks, text=shape, pair=pair, short_start=False)


def text_pipeline(place: Path, name: str, length: int) -> TextPipeline:
    """How a sentence encoder is fed: its tokenizer's start and end around each text. Raises UserError."""
    return TextPipeline.of_clip(place, length, name)


def image_shape(place: Path, name: str) -> tuple[Shape, int]:
    """The shape and patch size of an image tower's config. Raises UserError where it is no image transformer."""
    config = read_json(place / "config.json")
    if "patch_size" not in config:
        raise UserError(
            f"--vision {name} is not an image transformer of the transformers library (its config.json has no "
            "patch_size); give a DINOv2, a DINOv3, a ViT or the like."
        )
    return _shape(config, name, "--vision"), _number(config["patch_size"], name, "patch_size")


def _shape(config: dict[str, Any], name: str, flag: str) -> Shape:
    wanted = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    if missing := [key for key in wanted if key not in config]:
        raise UserError(f"{flag} {name} has no {missing[0]} in its config.json; give a transformers folder or hub id.")
    width, depth, heads = (_number(config[key], name, key) for key in wanted)
    mlp = config.get("intermediate_size") or width * _number(config.get("mlp_ratio", 4), name, "mlp_ratio")
    return Shape(width, depth, _number(mlp, name, "intermediate_size"), heads, "gelu")


def _number(value: Any, name: str, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= LARGEST:
        raise UserError(f"{name} has {what} {value!r} in its configuration, which is not a number from 1 to {LARGEST}.")
    return int(value)


def _colours(values: Any, name: str) -> tuple[float, ...]:
    values = [0.5] * 3 if values is None else values
    if not (isinstance(values, list) and len(values) == 3 and all(isinstance(x, int | float) for x in values)):
        raise UserError(f"{name} has an image processor with mean or std {values!r}; three numbers are needed.")
    return tuple(map(float, values))
