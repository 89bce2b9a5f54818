"""RUN/model: what users take away. A plain transformers folder, the decoder beside it, and a model card."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment
from transformers import (
    PreTrainedTokenizerFast,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from opensiglip.data.text import TextPipeline
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture
from opensiglip.models.timm_tower import TimmVision
from opensiglip.recipes.recipe import Recipe

CARD = """---
library_name: transformers
pipeline_tag: {{ "zero-shot-image-classification" if has_text else "image-feature-extraction" }}
license: other
tags: [opensiglip{% if recipe %}, {{ recipe }}{% endif %}]
---
# {{ title }} · {{ size }}, {{ resolution }} px
{% if command %}
Trained with OpenSigLIP by

```
{{ command }}
```

| what | |
| --- | --- |
| data | {% for source in data %}{{ source }}{{ "; " if not loop.last }}{% endfor %} |
| steps, images seen | {{ steps }}, {{ images }} |
{% for name, value in results.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}{% else %}
Converted by OpenSigLIP from {{ origin }}; nothing was trained.
{% endif %}
## Use
{% if onnx %}
`image_encoder.onnx` takes {% if patches %}images of any aspect ratio as transformers' `Siglip2ImageProcessor` cuts
them, `pixel_values` [B, N, {{ 3 * patches.patch_size ** 2 }}], `pixel_attention_mask` [B, N] and `spatial_shapes`
[B, 2]{% else %}`pixel_values` [B, 3, {{ resolution }}, {{ resolution }}] in [-1, 1]{% endif %}{% if has_text %} and
gives `image_embeds` [B, D]; `text_encoder.onnx` takes `input_ids` [B, {{ length }}] and gives `text_embeds` [B, D];
both are of length 1: the probability of a pair is sigmoid(`logit_scale` · dot product + `logit_bias`), with the two
numbers that `opensiglip.json` holds{% endif %}.
`last_hidden_state` [B, N, D] are the image's tokens. Any batch size will do{% if patches %}, and any N{% endif %}.
{% elif has_text %}
```python
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("{{ folder }}"), AutoProcessor.from_pretrained("{{ folder }}")
inputs = processor(text=["a red apple"], images=image, padding="max_length", max_length={{ length }}, truncation=True,
                   {% for name, value in patches.items() %}{{ name }}={{ value }}, {% endfor %}return_tensors="pt")
probability = model(**inputs).logits_per_image.sigmoid()
```
{% if patches %}
Images keep their aspect ratio; `max_num_patches` is free, and more of them see more.
{% endif %}
{% else %}
```python
from transformers import AutoImageProcessor, AutoModel

model, processor = AutoModel.from_pretrained("{{ folder }}"), AutoImageProcessor.from_pretrained("{{ folder }}")
tokens = model(**processor(image, return_tensors="pt")).last_hidden_state
```
{% endif %}{% if has_text %}
Texts are padded to exactly {{ length }} tokens, lower-cased by the tokenizer, and need no attention mask: anything else
silently gives other embeddings.
{% endif %}{% if has_decoder and not onnx %}
The captioning decoder is in `decoder.safetensors`; `opensiglip.Model.from_pretrained` loads both.
{% endif %}{% if has_more %}
What a transformers model has no place for is in `beside.safetensors`; `opensiglip.Model.from_pretrained` loads it, too.
{% endif %}
## Licence

OpenSigLIP is under Apache-2.0. The weights are their maker's to license, within the terms of the data{% if base %} and
of `{{ base }}`, from which they started{% endif %}; say here which licence it is.

## Limits

It knows what its data showed it, with the data's biases. {% if "scenes" in data | join %}The embedded scenes are
OpenMoji drawings (CC BY-SA 4.0) in synthetic layouts: real artwork and real names, not photographs.{% endif %}
"""


def write_processor(folder: Path, model: Model, pipeline: TextPipeline | None, most: int | None = None) -> None:
    """The image processor as transformers reads it, and with a text tower the one of both; `most` as in `patches`."""
    side, tower = model.architecture.resolution, model.vision
    mean, std = [0.5] * 3, [0.5] * 3
    if isinstance(tower, TimmVision):
        mean, std = tower.mean.flatten().tolist(), tower.std.flatten().tolist()
    images: SiglipImageProcessor | Siglip2ImageProcessor
    images = SiglipImageProcessor(size={"height": side, "width": side}, resample=2, image_mean=mean, image_std=std)
    both: type[SiglipProcessor | Siglip2Processor] = SiglipProcessor
    if model.architecture.naflex:
        cut = patches(model.architecture, most)
        images = Siglip2ImageProcessor(patch_size=cut["patch_size"], max_num_patches=cut["max_num_patches"])
        both = Siglip2Processor
    images.save_pretrained(folder)
    if model.text is None or pipeline is None:
        return
    both(images, pipeline.tokenizer).save_pretrained(folder)
    if model.architecture.naflex and type(pipeline.tokenizer) is PreTrainedTokenizerFast:
        keep_class(folder / "tokenizer_config.json")


def keep_class(path: Path) -> None:
    """Have transformers read the tokenizer as what it is.

    It takes every tokenizer beside a Siglip2Model for Gemma's and rebuilds it as such, whatever the folder says
    (models/auto/tokenization_auto.py: MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS): silently other ids. A folder that
    names a class of its own is left alone, and without trust_remote_code that class is never looked for.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoTokenizer": [None, "tokenizer.PreTrainedTokenizerFast"]}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def patches(architecture: Architecture, most: int | None = None) -> dict[str, int]:
    """How transformers' NaFlex processor cuts images: into `most` patches, by default those of the model's square.

    The card gives them too: the processor of image and text overrules the one of images with 16 and 256 of its own.
    """
    if not architecture.naflex:
        return {}
    return {
        "patch_size": architecture.patch,
        "max_num_patches": most or (architecture.resolution // architecture.patch) ** 2,
    }


def write_text(folder: Path, recipe: Recipe, pipeline: TextPipeline) -> dict[str, Any]:
    """The tokenizer as transformers reads it; returns what the sidecar must carry: policy, box format, tasks."""
    return {
        "text": pipeline.save_pretrained(folder),
        "boxes": str(recipe.boxes),
        "tasks": list(recipe.tasks),
    }


def card_of(config: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """What the model card says of a run."""
    return {
        "recipe": config["recipe"].rpartition(":")[2],
        "size": config["keywords"].get("size", ""),
        "command": summary["command"],
        "data": config["train"]["data"],
        "base": config["train"].get("init"),
        "steps": summary["steps"],
        "images": summary["images_seen"],
        "results": summary["figures"],
    }


def write_card(
    folder: Path,
    model: Model,
    card: dict[str, Any],
    name: str = "model",
    onnx: bool = False,
    most: int | None = None,
) -> None:
    """README.md; `card` is a run's `card_of`, or says by `title` and `origin` what was converted."""
    facts = card | {
        "title": card.get("title") or card["recipe"],
        "folder": name,
        "onnx": onnx,
        "has_text": isinstance(model.host[0], SiglipModel | Siglip2Model),
        "has_decoder": model.decoder is not None,
        "has_more": bool(model.beside()),
        "length": model.architecture.length,
        "resolution": model.architecture.resolution,
        "patches": patches(model.architecture, most),
    }
    text = Environment(trim_blocks=False, autoescape=False).from_string(CARD).render(facts)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


def export(folder: Path, model: Model, recipe: Recipe, pipeline: TextPipeline, card: dict[str, Any]) -> None:
    """Write the whole folder; `card` fills the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    about = write_text(folder, recipe, pipeline)
    write_processor(folder, model, pipeline)
    model.save_pretrained(folder, about | {"recipe": card["recipe"], "languages": card["languages"]})
    write_card(folder, model, card)
