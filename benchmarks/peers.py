"""What others do with the same batch: open_clip's CLIP, SigLIP and CoCa, transformers' Siglip2Model."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.captions import padded, texts
from benchmarks.case import Case
from benchmarks.measure import Variant, peer
from opensiglip.models.sizes import Shape

NAIVE, TASKS = "transformers Siglip2 + naive captions", 3


def open_clip_steps(case: Case) -> list[Variant]:
    """SigLIP and CLIP as open_clip trains them."""
    if peer("open_clip", "open_clip_torch") is None:
        return []
    return [open_clip_step(case), open_clip_step(case, clip=True)]


def open_clip_step(case: Case, clip: bool = False) -> Variant:
    """SigLIP or CLIP by open_clip's transformers and losses. Raises ImportError where it is not installed."""
    from open_clip.loss import ClipLoss, SigLipLoss
    from open_clip.model import CLIP

    loss, bias = (ClipLoss(), None) if clip else (SigLipLoss(), -10.0)
    batch, width = case.batch(0, 0.0), case.networks.vision.width
    model: Any = CLIP(width, _vision(case), _text(case), init_logit_bias=bias, output_dict=True).to(case.place)
    step = case.peers(model.parameters(), lambda: loss(**model(batch["image"], batch["text"])))
    return Variant(f"open_clip {'CLIP' if clip else 'SigLIP'}", step, case.floor(batch), case.images)


def coca_steps(case: Case) -> list[Variant]:
    """open_clip's CoCa: contrastive loss and one autoregressive caption, whose padding is multiplied too."""
    if peer("open_clip", "open_clip_torch") is None:
        return []
    from open_clip.coca_model import CoCa
    from open_clip.loss import CoCaLoss

    width, decoder = case.networks.vision.width, case.networks.decoder
    assert decoder is not None
    multimodal = {"context_length": case.networks.length, "vocab_size": case.vocabulary, "attn_pooler_heads": 4}
    multimodal |= {"width": decoder.width, "heads": decoder.heads, "layers": decoder.depth}
    pooled = {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    text = _text(case) | {"embed_cls": True, "output_tokens": True}
    model: Any = CoCa(width, multimodal, text, _vision(case) | pooled).to(case.place)
    loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    batch = case.batch(0, 0.0)
    (row,) = padded(texts(case.images, 1, case.networks.length, case.vocabulary, parallel=0.0), *_row(case))
    ids = row["targets"].to(case.place)

    def value() -> Tensor:
        return sum(loss(**model(batch["image"], ids)))

    return [Variant("open_clip CoCa", case.peers(model.parameters(), value), items=case.images)]


def transformers_step(case: Case) -> Variant:
    """Siglip2Model with its own loss."""
    model, inputs = _siglip2(case)
    batch = case.batch(0, 0.0)
    run = case.peers(model.parameters(), lambda: model(**inputs, return_loss=True).loss)
    return Variant("transformers Siglip2", run, case.floor(batch), case.images)


def naive_captions_step(case: Case) -> Variant:
    """Siglip2Model and a decoder as one writes it first: a padded pass for each task, all logits, padding ignored."""
    model, inputs = _siglip2(case)
    shape = case.networks.decoder
    assert shape is not None
    embedding = nn.Embedding(case.vocabulary, shape.width, device=case.place)
    layer = nn.TransformerDecoderLayer(
        shape.width, shape.heads, shape.mlp, 0.0, "gelu", batch_first=True, norm_first=True, device=case.place
    )
    decoder = nn.TransformerDecoder(layer, shape.depth)
    vocabulary = nn.Linear(shape.width, case.vocabulary, device=case.place)
    length = case.networks.length
    later = nn.Transformer.generate_square_subsequent_mask(length, device=case.place)
    drawn = texts(case.images, TASKS, length, case.vocabulary, parallel=0.5)
    rows = [{name: x.to(case.place) for name, x in part.items()} for part in padded(drawn, *_row(case))]

    def value() -> Tensor:
        out = model(**inputs, return_loss=True)
        memory, total = out.vision_model_output.last_hidden_state, out.loss
        for row in rows:
            hidden = decoder(embedding(row["targets"]), memory, tgt_mask=later, tgt_is_causal=True)
            labels = row["targets"].masked_fill(row["weights"] == 0, -100)
            total = total + F.cross_entropy(vocabulary(hidden).flatten(0, 1), labels.flatten()) / len(rows)
        return total

    trained = nn.ModuleList([model, embedding, decoder, vocabulary])
    return Variant(NAIVE, case.peers(trained.parameters(), value), items=case.images)


def _siglip2(case: Case) -> tuple[Any, dict[str, Tensor]]:
    """transformers' model of the case's size, and the batch as it takes it."""
    from transformers import Siglip2Config, Siglip2Model, Siglip2TextConfig, Siglip2VisionConfig

    networks = case.networks
    assert networks.text is not None
    side = networks.resolution // networks.patch
    vision = Siglip2VisionConfig(**_tower(networks.vision), num_patches=side**2, patch_size=networks.patch)
    text = Siglip2TextConfig(
        **_tower(networks.text),
        vocab_size=case.vocabulary,
        bos_token_id=None,
        eos_token_id=1,
        max_position_embeddings=networks.length,
        projection_size=networks.vision.width,
    )
    config = Siglip2Config(vision_config=vision.to_dict(), text_config=text.to_dict())
    batch, place = case.batch(0, 0.0), case.place
    inputs = {
        "pixel_values": torch.randn(case.images, side**2, 3 * networks.patch**2, device=place),
        "pixel_attention_mask": torch.ones(case.images, side**2, dtype=torch.int64, device=place),
        "spatial_shapes": torch.full((case.images, 2), side),
        "input_ids": batch["text"],
    }
    model: Any = Siglip2Model(config)
    return model.to(place), inputs


def _tower(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
    }


def _vision(case: Case) -> dict[str, Any]:
    networks = case.networks
    shape = networks.vision
    sizes = {"width": shape.width, "layers": shape.depth, "head_width": shape.width // shape.heads}
    return sizes | {
        "image_size": networks.resolution,
        "patch_size": networks.patch,
        "mlp_ratio": shape.mlp / shape.width,
    }


def _text(case: Case) -> dict[str, Any]:
    shape = case.networks.text
    assert shape is not None
    sizes = {"width": shape.width, "layers": shape.depth, "heads": shape.heads, "mlp_ratio": shape.mlp / shape.width}
    return sizes | {"context_length": case.networks.length, "vocab_size": case.vocabulary}


def _row(case: Case) -> tuple[int, int]:
    return case.networks.length, case.vocabulary
