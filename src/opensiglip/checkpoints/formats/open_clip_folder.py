"""What is written for open_clip: config, weights and tokenizer, as `local-dir:FOLDER` and `hf-hub:OWNER/NAME` load."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from opensiglip.checkpoints.contents import Contents
from opensiglip.checkpoints.formats import timm_vit
from opensiglip.checkpoints.formats.open_clip import CONFIG, RENAMES, SIGLIP, WEIGHTS
from opensiglip.checkpoints.formats.timm_folder import check, pixels, tell, to_timm
from opensiglip.errors import UserError
from opensiglip.json_file import write_json
from opensiglip.models.model import Model
from opensiglip.models.sizes import Shape
from opensiglip.models.towers import Text

PROBES = ("a", "", "two Dogs, on the grass!", "a word and one more " * 64)


def write(folder: Path, contents: Contents, repository: str) -> None:
    """Write the folder, tokenizer included, and compare what open_clip makes of it. Raises UserError.

    `repository`: what open_clip finds the tokenizer by on the hub.
    """
    try:
        import open_clip
    except ImportError:
        raise UserError("--format open_clip needs open_clip; `pip install open-clip-torch`.") from None
    model: Model = contents.model
    networks, text = model.architecture, model.architecture.text
    check(model, "open_clip")
    if type(model.text) is not Text or text is None or contents.pipeline is None:
        raise UserError("--format open_clip takes SigLIP's two towers and a tokenizer; give --format timm or hf.")
    name, exact = variant(model)
    config: dict[str, Any] = {
        "embed_dim": networks.vision.width,
        "custom_text": True,
        "vision_cfg": {
            "image_size": networks.resolution,
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": networks.length,
            "vocab_size": model.vocabulary,
            "hf_tokenizer_name": repository,
            "width": text.width,
            "heads": text.heads,
            "layers": text.depth,
            "mlp_ratio": (text.mlp + 0.25) / text.width,
            "norm_kwargs": {"eps": 1e-6},
            **SIGLIP,
        },
    }
    if text.activation == "gelu_pytorch_tanh":
        config["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
    if contents.pipeline.policy.clean == "canonical":
        config["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    if networks.logit_bias:
        config["init_logit_bias"] = -10
    frame = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": networks.interpolation, "resize_mode": "squash"}
    write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": frame})
    save_file(to_open_clip(model.state_dict(), networks.logit_bias), folder / WEIGHTS, metadata={"format": "pt"})
    contents.pipeline.plain().save_pretrained(folder)
    library, tokenizer = open_clip.create_model(f"local-dir:{folder}"), open_clip.get_tokenizer(f"local-dir:{folder}")
    library.eval()
    ids = torch.stack([torch.from_numpy(contents.pipeline.fixed(probe)) for probe in PROBES])
    if not contents.pipeline.agrees_in_open_clip(tokenizer, PROBES):
        raise UserError("open_clip's tokenizer gives other ids than the model was trained with; give --format hf.")
    images = pixels(model)
    with torch.no_grad():
        gaps = [
            F.normalize(model.text(ids).pooled, dim=-1) - library.encode_text(ids, normalize=True),
            F.normalize(model.vision(images).pooled, dim=-1) - library.encode_image(images, normalize=True),
        ]
    of_texts, of_images = (float(gap.abs().max()) for gap in gaps)
    tell("open_clip on texts", of_texts)
    excuse = "" if exact else f": its {name} has another form of the GELU than the model was trained with"
    tell("open_clip on images", of_images, excuse)


def variant(model: Model) -> tuple[str, bool]:
    """The timm ViT of this size that open_clip knows by name, and whether its GELU is of the same form too.

    open_clip passes timm no sizes, so the name has to say them all. Raises UserError where there is none.
    """
    import timm

    networks = model.architecture
    for name in timm.list_models(f"vit_*_patch{networks.patch}_siglip_{networks.resolution}"):
        made = timm_vit.skeleton(name, networks.resolution, name)
        if made.pooling and sizes(made.vision) == sizes(networks.vision):
            return name, made.vision.activation == networks.vision.activation
    raise UserError(
        f"open_clip builds image towers by timm's names, and timm has no SigLIP ViT of width {networks.vision.width}, "
        f"depth {networks.vision.depth}, patch {networks.patch} at {networks.resolution} pixels; give --format timm or "
        "hf."
    )


def sizes(shape: Shape) -> tuple[int, int, int, int]:
    """All of a tower's sizes."""
    return shape.width, shape.depth, shape.mlp, shape.heads


def to_open_clip(state: dict[str, Tensor], bias: bool) -> dict[str, Tensor]:
    """`Model.state_dict()` as a CustomTextCLIP names it: the inverse of `open_clip.to_ours`."""
    theirs = {f"visual.trunk.{name}": tensor for name, tensor in to_timm(state).items()}
    theirs["logit_scale"] = state["logit_scale"].reshape(()).clone()
    if bias:
        theirs["logit_bias"] = state["logit_bias"].reshape(()).clone()
    prefix = "text.tower."
    for key, tensor in state.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        part, _, kind = name.rpartition("_proj.")
        if part.endswith(("self_attn.k", "self_attn.v")):
            continue
        if part.endswith("self_attn.q"):
            stem = key.removesuffix(f"q_proj.{kind}")
            tensor = torch.cat([state[f"{stem}{letter}_proj.{kind}"] for letter in "qkv"])
            name = f"{part.removesuffix('self_attn.q')}attn.in_proj_{kind}"
        name = "positional_embedding" if name == "embeddings.position_embedding.weight" else name
        for their, mine in RENAMES:
            name = name.replace(mine, their)
        theirs[f"text.{name}"] = tensor.detach().contiguous()
    return theirs
