"""README.md of a folder: what the model is, what it was trained by, and how it is used."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template
from transformers import Siglip2Model, SiglipModel

from opensiglip.checkpoints.contents import Contents
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, spell

CARD = """---
library_name: {{ library }}
pipeline_tag: {{ "zero-shot-image-classification" if has_text and format != "timm" else "image-feature-extraction" }}
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
{% if format == "open_clip" %}
```python
import open_clip

model, _, transform = open_clip.create_model_and_transforms("{{ address }}")
tokenizer = open_clip.get_tokenizer("{{ address }}")
image_embeds = model.eval().encode_image(transform(image)[None], normalize=True)
text_embeds = model.encode_text(tokenizer(["a red apple"]), normalize=True)
logits = model.logit_scale.exp() * image_embeds @ text_embeds.T{{ " + model.logit_bias" if bias }}
probability = logits.{{ "sigmoid()" if bias else "softmax(-1)" }}
```
{% elif format == "timm" %}
```python
import timm

model = timm.create_model("{{ address }}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image)[None])
```
The image tower alone, pixels in [-1, 1].
{% elif format == "onnx" %}
`image_encoder.onnx` takes {% if patches %}images of any aspect ratio as transformers' `Siglip2ImageProcessor` cuts
them, `pixel_values` [B, N, {{ 3 * patches.patch_size ** 2 }}], `pixel_attention_mask` [B, N] and `spatial_shapes`
[B, 2]{% else %}`pixel_values` [B, 3, {{ resolution }}, {{ resolution }}] in [-1, 1]{% endif %}{% if compares %} and
gives `image_embeds` [B, D]; `text_encoder.onnx` takes `input_ids` [B, {{ length }}] and gives `text_embeds` [B, D];
both are of length 1: {% if bias %}the probability of a pair is
sigmoid(`logit_scale` · dot product + `logit_bias`), with the two numbers in `opensiglip.json`{% else %}texts that
exclude each other have the probabilities softmax(`logit_scale` · dot products), with the number in `opensiglip.json`
{%- endif %}{% endif %}.
`last_hidden_state` [B, N, D] are the image's tokens. Any batch size will do{% if patches %}, and any N{% endif %}.
{% elif pair %}
```python
import opensiglip

model = opensiglip.load("{{ folder }}")
cosines = model.embed_images(["photo.jpg"]) @ model.embed_texts(["a red apple"]).T
```
`vision/` and `text/` hold the pretrained towers, each a folder that plain transformers opens; the heads that bring both
into one space are in `beside.safetensors`.
{% elif has_text %}
```python
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("{{ folder }}"), AutoProcessor.from_pretrained("{{ folder }}")
inputs = processor(text=["a red apple"], images=image, padding="max_length", max_length={{ length }}, truncation=True,
                   {% for name, value in patches.items() %}{{ name }}={{ value }}, {% endfor %}return_tensors="pt")
probability = model(**inputs).logits_per_image.{{ "sigmoid()" if bias else "softmax(-1)" }}
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
{% endif %}{% if has_text and not pair and format != "timm" %}
Texts are padded to exactly {{ length }} tokens, lower-cased by the tokenizer, and need no attention mask: anything else
silently gives other embeddings.
{% endif %}{% if nested and format != "timm" %}
Embeddings of images and texts may be cut to their first {{ nested | join(" or ") }} numbers, if their length is made 1
again: the model was trained to compare them so, too.
{% endif %}{% if has_decoder and format == "transformers" %}
The captioning decoder is in `decoder.safetensors`; `opensiglip.Model.from_pretrained` loads both.
{% endif %}{% if has_more and format == "transformers" %}
What a transformers model has no place for is in `beside.safetensors`; `opensiglip.Model.from_pretrained` loads it, too.
{% endif %}
## Licence

OpenSigLIP is under Apache-2.0. The weights are their maker's to license, within the terms of the data{% if base %} and
of `{{ base }}`, from which they started{% endif %}; say here which licence it is.

## Limits

It knows what its data showed it, with the data's biases. {% if "scenes" in data | join %}The embedded scenes are
OpenMoji drawings (CC BY-SA 4.0) in synthetic layouts: real artwork and real names, not photographs.{% endif %}
"""


def write_card(folder: Path, contents: Contents, format: str = "transformers", *, repository: str = "model") -> None:
    """Write README.md; `repository` is what the example in it loads: a folder's name, or a hub id."""
    model: Model = contents.model
    facts = contents.card if "command" in contents.card else _of_other_make(contents)
    facts = {**facts, "title": facts.get("title") or facts["recipe"]} | {
        "folder": repository,
        "format": format,
        "library": format if format in ("open_clip", "timm") else "transformers",
        "address": f"{'hf-hub' if '/' in repository else 'local-dir'}:{repository}",
        "bias": model.architecture.logit_bias,
        "has_text": isinstance(model.host[0], SiglipModel | Siglip2Model),
        "compares": model.text is not None,
        "pair": model.architecture.foreign is not None,
        "has_decoder": model.decoder is not None,
        "has_more": bool(model.beside()),
        "length": model.architecture.length,
        "nested": model.architecture.nested,
        "resolution": model.architecture.resolution,
        "patches": patches(model.architecture, contents.frame),
    }
    text = card_template().render(facts)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


@cache
def card_template() -> Template:
    return Environment(trim_blocks=False, autoescape=False).from_string(CARD)


def patches(architecture: Architecture, frame: Any) -> dict[str, int]:
    """How transformers' NaFlex processor cuts images; empty where they are squares.

    The card gives it too: the processor of image and text overrules the one of images with 16 and 256 of its own.
    """
    return {"patch_size": frame.patch, "max_num_patches": frame.budget} if architecture.naflex else {}


def _of_other_make(contents: Contents) -> dict[str, Any]:
    networks, title = contents.model.architecture, Path(contents.name).name
    size = networks.encoder or spell(networks)
    return {
        "title": title,
        "origin": f"{title} ({contents.format})",
        "size": size,
        "data": [],
        "base": contents.name,
    }
