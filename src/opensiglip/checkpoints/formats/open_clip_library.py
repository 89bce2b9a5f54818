"""`open_clip:NAME:PRETRAINED`: whatever open_clip itself can make, by its own networks, to be judged and asked."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensiglip.checkpoints.contents import Contents, frame_of
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError, first_line
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.types import Features


class OpenClipImages(nn.Module):
    """An image tower of open_clip's."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, visual = [model], model.visual  # listed: not a submodule twice
        self.visual = visual
        for name, value in (("mean", visual.image_mean), ("std", visual.image_std)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Features:
        """pixels [B, 3, H, W] in [-1, 1] -> pooled [B, E], tokens [B, N, D]."""
        output = self.model[0].forward_intermediates(
            image=((pixels + 1) / 2 - self.mean) / self.std,
            image_indices=1,
            normalize=False,
            normalize_intermediates=True,
            image_output_fmt="NLC",
        )
        return Features(output["image_features"], output["image_intermediates"][-1])


class ProjectedImages(OpenClipImages):
    """One whose patches have the class token's way into the texts' space."""

    def to_text(self, tokens: Tensor) -> Tensor:
        """tokens [B, N, D] -> [B, N, E]."""
        return tokens @ self.visual.proj


class OpenClipTexts(nn.Module):
    """A text tower of open_clip's, which gives a text's embedding and no tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Features:
        """ids [B, L] -> pooled [B, E], which stands for the tokens [B, 1, E] too."""
        pooled = self.model.encode_text(ids)
        return Features(pooled, pooled[:, None])


class OpenClip(nn.Module):
    """What `Pretrained.model` has, of an open_clip model."""

    decoder = pali = None

    def __init__(self, model: Any, length: int, vocabulary: int) -> None:
        from open_clip.transformer import VisionTransformer

        super().__init__()
        visual = model.visual
        projected = isinstance(visual, VisionTransformer) and visual.proj is not None
        self.vision = ProjectedImages(model) if projected else OpenClipImages(model)
        self.text = OpenClipTexts(model)
        self.logit_scale, self.logit_bias = model.logit_scale, getattr(model, "logit_bias", None)
        size = visual.image_size
        side = int(size if isinstance(size, int) else size[0])
        # Of shapes only what frames images and texts: the networks are open_clip's to know.
        unknown = Shape(0, 0, 0, 1)
        biased = self.logit_bias is not None
        self.architecture = Architecture(side, 0, length, unknown, unknown, logit_bias=biased)
        self.vocabulary = vocabulary


def read(rest: str, name: str) -> Contents:
    """`NAME[:PRETRAINED or file]`, as open_clip's create_model takes them, with weights in safetensors alone.

    Raises UserError.
    """
    try:
        import open_clip
    except ImportError:
        raise UserError("open_clip: models need open_clip; `pip install open-clip-torch`.") from None
    whole = rest.startswith(("hf-hub:", "local-dir:"))  # names with a colon of their own
    made, _, weights = (rest, "", "") if whole else rest.partition(":")
    if not weights and not whole:
        raise UserError(f"{name} names no weights; write open_clip:NAME:PRETRAINED, or a .safetensors file of weights.")
    try:
        file = weights_file(made, weights)
        if file.suffix != ".safetensors":
            raise UserError(f"{name} has its weights in {file}, which would be unpickled; save them as .safetensors.")
        library = open_clip.create_model(made, pretrained=weights or None, load_weights=False, pretrained_text=False)
        open_clip.load_checkpoint(library, str(file))
        tokenizer = open_clip.get_tokenizer(made)
    except UserError:
        raise
    except Exception as error:  # open_clip's, the hub's and the disk's: a dozen types
        raise UserError(f"{name} can't be loaded ({first_line(error)}).") from error
    pipeline = TextPipeline.of_open_clip(tokenizer, name)
    model = OpenClip(library, pipeline.policy.length, len(pipeline)).eval()
    return Contents(name, model, frame_of(model.architecture), "model of open_clip's library", pipeline)


def weights_file(made: str, weights: str) -> Path:
    """Where create_model would find the weights; fetched, if they are on the hub. Raises UserError."""
    import open_clip

    schema, _, place = made.rpartition(":")
    if schema == "local-dir":
        files = list(Path(place).glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(f"{place} has {len(files)} .safetensors files; keep one there, of all weights.")
        return files[0]
    known = open_clip.get_pretrained_cfg(made.replace("/", "-"), weights) if not schema else {"hf_hub": f"{place}/"}
    return Path(open_clip.download_pretrained(known) if known else weights)
