"""What is written: a transformers folder or another format, with tokenizer, processor, sidecar and model card."""

from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from opensiglip.checkpoints.contents import Contents
from opensiglip.checkpoints.formats import open_clip_folder, timm_folder
from opensiglip.checkpoints.formats.onnx import write_onnx
from opensiglip.checkpoints.formats.sentence_encoder import POOLING, write_sentence_encoder
from opensiglip.checkpoints.model_card import patches, write_card
from opensiglip.json_file import SIDECAR, load_json, write_json
from opensiglip.models.model import Model
from opensiglip.models.pretrained_towers import PretrainedText
from opensiglip.models.timm_tower import TimmVision

KINDS = ("text", "image")
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def write(folder: Path, contents: Contents, format: str = "transformers", *, repository: str = "model") -> None:
    """Write the whole folder; `repository` is what the card's example loads.

    `format`: transformers or onnx; open_clip or timm, which hold what those libraries read and no sidecar of ours.
    Raises UserError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if format in ("open_clip", "timm"):
        if format == "open_clip":
            open_clip_folder.write(folder, contents, repository)
        else:
            timm_folder.write(folder, contents.model)
        write_card(folder, contents, format, repository=repository)
        return
    model: Model = contents.model
    about: dict[str, Any] = {
        "boxes": None if contents.boxes is None else str(contents.boxes),
        "tasks": list(contents.tasks),
        "languages": list(contents.languages),
    }
    if "recipe" in contents.card:
        about["recipe"] = contents.card["recipe"]
    if contents.pipeline is not None:
        about["text"] = contents.pipeline.save_pretrained(folder)
    write_processor(folder, contents)
    if format == "onnx":
        write_json(folder / SIDECAR, about | write_onnx(folder, model))
    else:
        model.save_pretrained(folder, about)
        if isinstance(model.host[0], SiglipModel | Siglip2Model) and contents.pipeline is not None:
            write_sentence_transformers(folder, model.architecture.length)
        if isinstance(model.text, PretrainedText) and model.text.pooling in POOLING and contents.pipeline is not None:
            write_sentence_encoder(folder / "text", model.text, contents.pipeline)
    write_card(folder, contents, format, repository=repository)


def write_processor(folder: Path, contents: Contents) -> None:
    """The image processor as transformers reads it, and with a text tower the one of both."""
    networks, tower = contents.model.architecture, contents.model.vision
    side, mean, std = networks.resolution, [0.5] * 3, [0.5] * 3
    if isinstance(tower, TimmVision):
        mean, std = tower.mean.flatten().tolist(), tower.std.flatten().tolist()
    if (pair := networks.foreign) is not None:
        mean, std = list(pair.mean), list(pair.std)
    images: SiglipImageProcessor | Siglip2ImageProcessor
    size, resample = {"height": side, "width": side}, RESAMPLE[networks.interpolation]
    images = SiglipImageProcessor(size=size, resample=resample, image_mean=mean, image_std=std)
    both: type[SiglipProcessor | Siglip2Processor] = SiglipProcessor
    if networks.naflex:
        cut = patches(networks, contents.frame)
        images = Siglip2ImageProcessor(patch_size=cut["patch_size"], max_num_patches=cut["max_num_patches"])
        both = Siglip2Processor
    images.save_pretrained(folder)
    if contents.model.text is None or contents.pipeline is None:
        return
    tokenizer = contents.pipeline.plain()
    both(images, tokenizer).save_pretrained(folder)
    if networks.naflex and type(tokenizer) is PreTrainedTokenizerFast:
        keep_class(folder / "tokenizer_config.json")


def keep_class(path: Path) -> None:
    """Have transformers read the tokenizer as what it is.

    It takes every tokenizer beside a Siglip2Model for Gemma's and rebuilds it as such, whatever the folder says
    (models/auto/tokenization_auto.py: MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS): silently other ids. A folder that
    names a class of its own is left alone, and without trust_remote_code that class is never looked for.
    """
    config = load_json(path)
    config["auto_map"] = {"AutoTokenizer": [None, "tokenizer.PreTrainedTokenizerFast"]}
    write_json(path, config)


def write_sentence_transformers(folder: Path, length: int) -> None:
    """What sentence-transformers reads the folder by: both towers' embeddings, each text padded to the tower's length.

    Without these files it pads to the batch's longest text, which gives other embeddings.
    """
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    write_json(folder / "modules.json", [module])
    features = {kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in KINDS}
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": features,
        "module_output_name": "sentence_embedding",
        "processing_kwargs": {"text": {"padding": "max_length", "max_length": length, "truncation": True}},
    }
    write_json(folder / "sentence_bert_config.json", settings)
