"""`SigLIP2Loss`: the whole objective on plain tensors, for any encoders and any loop."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from opensiglip.distributed import average
from opensiglip.models.decoder import Decoder
from opensiglip.models.ema import Ema, Momentum
from opensiglip.models.sizes import HeadShape
from opensiglip.objectives.base import Encoded, Notes, Objective
from opensiglip.objectives.captioning import Caption
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.objectives.distillation import LocalToGlobal, MaskedPatches
from opensiglip.training.learner import denominators, update_averages, weighted_losses
from opensiglip.types import Batch, Features

MOMENTUM = 0.966  # of the teacher: SILC's, recalled (docs/recipes/silc.md)


def siglip2_terms(
    width: int,
    head: HeadShape,
    *,
    sigmoid: float,
    caption: float,
    distillation: float,
    start: float,
    momentum: float = MOMENTUM,
) -> list[Objective]:
    """SigLIP 2's terms with weights sigmoid, caption, r and r / 4, the last two from `start` on; 0 leaves one out.

    (SigLIP 2, Sec. 2.2 and 2.3)
    """
    terms: list[Objective] = [Sigmoid(weight=sigmoid)] if sigmoid else []
    terms += [Caption(weight=caption)] if caption else []
    if distillation:
        teacher = Momentum(momentum)
        terms += [
            LocalToGlobal(width, head, weight=distillation, start=start, momentum=teacher),
            MaskedPatches(width, head, weight=distillation / 4, start=start, momentum=teacher),
        ]
    return terms


class SigLIP2Loss(nn.Module):
    """L = L_sigmoid + L_caption + r (L_local_to_global + 1/4 L_masked_patches).    (SigLIP 2, Sec. 2.2 and 2.3)

    It takes the outputs of your encoders. It owns the parts that only training needs: projection heads, their EMA,
    centres and the mask token. Pass its parameters to your optimizer (`requires_grad` is set correctly). Once
    distillation has begun, call `after_step` after each optimizer step, and keep the teacher, an EMA of your encoder.
    Negatives come from all ranks of the process group; means are over all ranks, as DDP expects.
    """

    def __init__(
        self,
        width: int,
        *,
        sigmoid: float = 1.0,
        caption: float = 1.0,
        distillation: float = 0.25,
        start: float = 0.8,
        head: HeadShape | None = None,
    ) -> None:
        """`width` of image embeddings and patch tokens. Weights are B's: r 0.5 for L and g, 1 for So400m."""
        super().__init__()
        terms = siglip2_terms(
            width, head or HeadShape(), sigmoid=sigmoid, caption=caption, distillation=distillation, start=start
        )
        self.objectives = nn.ModuleDict({term.name: term for term in terms})
        self.progress = 0.0
        self.notes: Notes = {}

    def terms(self) -> list[Objective]:
        """The terms that have begun."""
        return [o for o in self.objectives.values() if isinstance(o, Objective) and o.start <= self.progress]

    @property
    def mask_token(self) -> Tensor:
        """[D]: replaces the patch embeddings of masked patches in your encoder, before positions are added."""
        masked = self.objectives["masked_patches"]
        assert isinstance(masked, MaskedPatches)
        return masked.token

    def forward(
        self,
        *,
        progress: float,
        image_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        logit_scale: Tensor | None = None,
        logit_bias: Tensor | None = None,
        has_text: Tensor | None = None,
        group: Tensor | None = None,
        patch_tokens: Tensor | None = None,
        decoder: Decoder | None = None,
        captions: Batch | None = None,
        local_embeds: Tensor | None = None,
        teacher_embeds: Tensor | None = None,
        masked_tokens: Tensor | None = None,
        teacher_tokens: Tensor | None = None,
        mask_indices: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """ "loss" and each term that has begun, by name. Raises ValueError if a term lacks an input.

        progress: share of training done, 0 to 1. Sigmoid: image_embeds, text_embeds [B, D], not normalised; logit_scale
        (a logarithm, as in transformers) and logit_bias [1]; has_text [B] bool, all by default; group [B] int64, equal
        for examples of one image, which are not negatives of each other. Captions: patch_tokens [B, N, D], `decoder`,
        and `captions`, the output of `data.captions.pack`. Local to global: local_embeds [B, L, D] of crops,
        teacher_embeds [B, D] of the whole view. Masked: masked_tokens [B, N, D] of that view with its patches at
        `mask_indices` [B, M] replaced, teacher_tokens [B, N, D] of it unmasked.
        """
        self.progress = progress
        given: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("self", "progress")}
        needed = {
            "sigmoid": ("image_embeds", "text_embeds", "logit_scale", "logit_bias"),
            "caption": ("patch_tokens", "decoder", "captions"),
            "local_to_global": ("local_embeds", "teacher_embeds"),
            "masked_patches": ("masked_tokens", "teacher_tokens", "mask_indices"),
        }
        for term in self.terms():
            for name in needed[term.name]:
                if given[name] is None:
                    raise ValueError(f"{term.name} has begun (progress {progress:g}) and needs {name}.")
        nothing = torch.empty(0)
        passes = {"image:image": Features(image_embeds, nothing if patch_tokens is None else patch_tokens)}
        passes["text:text"] = Features(text_embeds, nothing)
        passes["image:local"] = Features(None if local_embeds is None else local_embeds.flatten(0, 1), nothing)
        passes["teacher:global"] = Features(teacher_embeds, nothing if teacher_tokens is None else teacher_tokens)
        passes["masked:global"] = Features(None, nothing if masked_tokens is None else masked_tokens)
        batch = dict(captions or {})
        if text_embeds is not None:
            every = torch.ones(len(text_embeds), dtype=torch.bool, device=text_embeds.device)
            batch["has_text"] = every if has_text is None else has_text
        fields = {"group": group, "local": local_embeds, "mask_indices": mask_indices}
        batch |= {name: x for name, x in fields.items() if x is not None}
        model: Any = SimpleNamespace(decoder=decoder, logit_scale=logit_scale, logit_bias=logit_bias)
        encoded = Encoded(model, batch, passes=passes)
        live = denominators(self, [batch]).float()
        losses = weighted_losses(self.terms(), encoded, live)
        self.notes = encoded.notes
        return losses

    @torch.no_grad()
    def after_step(self, momentum: float = MOMENTUM) -> None:
        """Update the heads' EMA with `momentum` and the centres with DINO's 0.9, after an optimizer step."""
        notes = average(self.notes)
        for term in self.terms():
            update_averages(term, momentum)
            term.after_step(notes)

    @torch.no_grad()
    def begin(self) -> None:
        """Copy the heads to their EMA when distillation begins. Copy your encoder to your teacher at the same time."""
        for module in self.modules():
            if isinstance(module, Ema):
                module.update(0.0)
