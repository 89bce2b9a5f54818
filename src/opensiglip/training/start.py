"""Where a run starts if not from noise: a checkpoint's networks, text pipeline and weights, and which of them move."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opensiglip.checkpoints.fit import Fitted
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.example import Source
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models import lora as low_rank
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, shapes, spell
from opensiglip.recipes import Recipe, RecipeFunction

FREEZE = {"vision": ("vision",), "text": ("text",), "both": ("vision", "text")}


def follow(checkpoint: Pretrained, function: RecipeFunction, keywords: dict[str, Any]) -> dict[str, Any]:
    """The recipe's keywords, with the checkpoint's networks where a keyword stands at its default."""
    networks, known = checkpoint.model.architecture, inspect.signature(function).parameters
    free = {name for name, p in known.items() if keywords.get(name, p.default) == p.default}
    taken: dict[str, Any] = {}
    if networks.encoder is None and "size" in known:
        taken["size"] = spell(networks) if "size" in free else keywords["size"]
        patch = shapes(taken["size"])[2]
        taken["resolution"] = networks.resolution // networks.patch * patch
    else:
        taken["resolution"] = networks.resolution
    if checkpoint.model.vocabulary:
        taken["length"] = networks.length
    if networks.decoder is not None:
        taken |= {"decoder_depth": networks.decoder.depth, "decoder_width": networks.decoder.width}
        taken["decoder_bias"] = networks.decoder_bias
    return keywords | {name: value for name, value in taken.items() if name in free}


def adopt(networks: Architecture, checkpoint: Pretrained) -> Architecture:
    """What a size does not say of the checkpoint's networks. Raises UserError where the recipe can't have them."""
    theirs = checkpoint.model.architecture
    if theirs.encoder is not None:
        if networks.text is not None:
            raise UserError(
                f"--init {checkpoint.name} is a timm encoder without SigLIP's pooling, and the recipe compares pooled "
                "images with texts; take cappa, locca or another recipe without a text tower."
            )
        return replace(networks, encoder=theirs.encoder)
    if theirs.coca is not None:
        if networks.coca is None:
            raise UserError(
                f"--init {checkpoint.name} is a CoCa, whose networks are those of the recipe coca; take that."
            )
        networks = replace(networks, coca=theirs.coca, decoder=theirs.decoder, short_start=False)
    text = networks.text and replace(networks.text, activation=(theirs.text or networks.text).activation)
    vision = replace(networks.vision, activation=theirs.vision.activation)
    return replace(networks, vision=vision, text=text, encoder=None)


def tokenizer_of(checkpoint: Pretrained, recipe: Recipe, given: str | None) -> TextPipeline | None:
    """The text pipeline that comes with the checkpoint, or from `--tokenizer` for it; None where there is none.

    Raises UserError on a `--tokenizer` beside one that the checkpoint's weights were trained with.
    """
    networks, theirs, rows = recipe.architecture, checkpoint.model.architecture, checkpoint.model.vocabulary
    reads = bool((theirs.text and networks.text) or (theirs.decoder and networks.decoder))
    if not rows or (given is not None and not reads):
        return None
    found = checkpoint.pipeline
    if found is not None and given is not None:
        raise UserError(
            f"--tokenizer is not the one that the weights of {checkpoint.name} were trained with; leave it out."
        )
    if found is None and given is not None:
        found = checkpoint.with_tokenizer(given).pipeline
    return None if found is None else found.with_length(networks.length).within(rows, checkpoint.name)


def train_within(checkpoint: Pretrained, sources: Sequence[Source], size: int, length: int, words: str) -> TextPipeline:
    """A tokenizer made of the data for a checkpoint that came without one; says so."""
    rows = checkpoint.model.vocabulary
    print(
        f"{checkpoint.name} has no tokenizer: one of at most {min(size, rows)} entries is trained on the data, so "
        "whatever reads or writes text begins to learn its words anew.",
        flush=True,
    )
    texts = (text for source in sources for text in source.texts())
    made = TextPipeline.train(texts, size=min(size, rows), length=length, words=words)
    return made.within(rows, checkpoint.name)


def hold(model: Model, freeze: str | None, rank: int | None) -> None:
    """Freeze towers, and train the others by low-rank matrices if a rank is given. Raises UserError."""
    if freeze is not None and freeze not in FREEZE:
        raise UserError(f"--freeze {freeze!r} is unknown; give {', '.join(FREEZE)}.")
    frozen = FREEZE[freeze] if freeze else ()
    for name in ("vision", "text"):
        tower = getattr(model, name)
        if name in frozen and tower is None:
            raise UserError(f"--freeze {freeze}: the recipe has no {name} tower.")
        if name in frozen:
            tower.requires_grad_(False)
        elif rank is not None and tower is not None:
            low_rank.add(tower.tower, rank)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {freeze} leaves nothing to train; give another recipe or tower.")


def told(checkpoint: Pretrained, fitted: Fitted, freeze: str | None, tower_lr: float, rank: int | None) -> str:
    """What became of the checkpoint, for the start-up lines."""
    parts = [f"{checkpoint.name} ({checkpoint.format}), {len(fitted.brought)} tensors"]
    parts += [f"fresh: {', '.join(fitted.fresh)}"] if fitted.fresh else []
    parts += [f"left out: {', '.join(fitted.left_out)}"] if fitted.left_out else []
    parts += [f"resized: {', '.join(fitted.resized)}"] if fitted.resized else []
    parts += [f"frozen: {freeze}"] if freeze else []
    parts += [f"LoRA of rank {rank}"] if rank else []
    parts += [f"towers at {tower_lr} of the rate"] if tower_lr != 1 else []
    return "; ".join(parts)


def slower(fitted: Fitted | None) -> set[str]:
    """The learner's parameters that `--tower-lr` slows: what the checkpoint brought of the towers."""
    names = fitted.brought if fitted else frozenset[str]()
    return {f"model.{name}" for name in names if name.startswith(("vision.", "text."))}
