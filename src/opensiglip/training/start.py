"""Where a run starts if not from noise: a pretrained model's networks, text pipeline and weights; what is trained."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opensiglip.checkpoints.fit import Fitted
from opensiglip.checkpoints.formats import towers
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.example import Source
from opensiglip.data.fields.captions import task_words
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models import lora
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, shapes, spell, with_patch
from opensiglip.recipes import Recipe, RecipeFunction

FREEZE = {"vision": ("vision",), "text": ("text",), "both": ("vision", "text"), "none": ()}


def open_start(init: str) -> Pretrained:
    """The model that `--init` names. Raises UserError where it is none that can be trained on."""
    start = Pretrained.open(init)
    if not isinstance(start.model, Model):
        raise UserError(
            f"--init {init} is {start.format}, a format that can't be trained; give a run, a SigLIP of "
            "transformers, open_clip or big_vision, or a timm encoder."
        )
    return start


def keywords_of(start: Pretrained, function: RecipeFunction, keywords: dict[str, Any]) -> dict[str, Any]:
    """The recipe's keywords, with the networks that it starts from where a keyword stands at its default."""
    networks, known = start.model.architecture, inspect.signature(function).parameters
    free = {name for name, p in known.items() if keywords.get(name, p.default) == p.default}
    taken: dict[str, Any] = {}
    if networks.encoder is None and "size" in known:
        size = spell(networks) if "size" in free else keywords["size"]
        if networks.foreign is not None and networks.foreign.vision:
            size = with_patch(size, networks.patch)  # an image tower of another make keeps its patches
        keywords = keywords | {"size": size}
        taken["resolution"] = networks.resolution // networks.patch * shapes(size)[2]
    else:
        taken["resolution"] = networks.resolution
    if start.model.vocabulary:
        taken["length"] = networks.length
    if networks.decoder is not None:
        taken |= {"decoder_depth": networks.decoder.depth, "decoder_width": networks.decoder.width}
        taken |= {"decoder_bias": networks.decoder_bias, "image_positions": networks.image_positions}
    return keywords | {name: value for name, value in taken.items() if name in free}


def architecture_of(start: Pretrained, networks: Architecture) -> Architecture:
    """The recipe's networks with what a size does not say of those that it starts from.

    Raises UserError where the recipe can't have them.
    """
    theirs = start.model.architecture
    if networks.coca is not None and theirs.coca is None:
        raise UserError(
            f"--init {start.name} is no CoCa, and the recipe coca starts from nothing else; take clip or siglip2."
        )
    if theirs.encoder is not None:
        if networks.text is not None:
            raise UserError(
                f"--init {start.name} is a timm encoder without SigLIP's pooling, and the recipe compares pooled "
                "images with texts; take cappa, locca or another recipe without a text tower."
            )
        return replace(networks, encoder=theirs.encoder)
    if theirs.coca is not None:
        if networks.coca is None:
            raise UserError(f"--init {start.name} is a CoCa, whose networks are those of the recipe coca; take that.")
        networks = replace(networks, coca=theirs.coca, decoder=theirs.decoder, short_start=False)
    text = networks.text and replace(networks.text, activation=(theirs.text or networks.text).activation)
    vision = replace(networks.vision, activation=theirs.vision.activation)
    pair, interpolation = theirs.pair, theirs.interpolation
    return replace(networks, vision=vision, text=text, encoder=None, pair=pair, interpolation=interpolation)


def pipeline_of(start: Pretrained, recipe: Recipe, tokenizer: str | None) -> TextPipeline | None:
    """The text pipeline that comes with the weights, or from `--tokenizer` for them; None where there is none.

    Raises UserError on a `--tokenizer` beside one that the weights were trained with.
    """
    networks, theirs, rows = recipe.architecture, start.model.architecture, start.model.vocabulary
    reads = bool((theirs.text and networks.text) or (theirs.decoder and networks.decoder))
    if not rows or (tokenizer is not None and not reads):
        return None
    if start.pipeline is not None and tokenizer is not None:
        raise UserError(f"--tokenizer is not the one that the weights of {start.name} were trained with; leave it out.")
    found = start.pipeline if tokenizer is None else start.with_tokenizer(tokenizer).pipeline
    return None if found is None else found.with_length(networks.length).within(rows, start.name)


def new_pipeline(
    start: Pretrained | None, recipe: Recipe, sources: Sequence[Source], tokenizer: str | None, vocabulary: int
) -> TextPipeline:
    """A run's text pipeline: the start's, else that of `--tokenizer`, else one trained on the data. Raises UserError.

    Trained for weights that came without one it has at most as many entries as they have rows; says so.
    """
    length, words, tokens = recipe.architecture.length, task_words(recipe.tasks, recipe.boxes), recipe.boxes.tokens()
    pair = recipe.architecture.foreign
    if start is None and pair is not None and pair.text is not None:
        if tokenizer is not None:
            raise UserError("--tokenizer is not the one that the tower of --text was trained with; leave it out.")
        return towers.text_pipeline(Path(pair.text), pair.text, length).with_tokens(tokens)
    found = None if start is None else pipeline_of(start, recipe, tokenizer)
    if found is not None:
        return found
    if tokenizer is not None:
        return TextPipeline.load(tokenizer, length).with_tokens(tokens)
    texts = (text for source in sources for text in source.texts())
    if start is None or not start.model.vocabulary:
        return TextPipeline.train(texts, size=vocabulary, length=length, words=words).with_tokens(tokens)
    rows = start.model.vocabulary
    print(
        f"{start.name} has no tokenizer: one of at most {min(vocabulary, rows)} entries is trained on the data, so "
        "whatever reads or writes text begins to learn its words anew.",
        flush=True,
    )
    made = TextPipeline.train(texts, size=min(vocabulary, rows), length=length, words=words)
    return made.within(rows, start.name)


def check_adapted(networks: Architecture, freeze: str | None, rank: int | None, tower_lr: float) -> None:
    """Raises UserError where low-rank matrices or a rate of the towers are asked for and every tower is frozen."""
    towers = {"vision"} if networks.text is None else {"vision", "text"}
    flags = [flag for flag, given in {"--lora": rank is not None, "--tower-lr": tower_lr != 1}.items() if given]
    if flags and towers <= {*FREEZE.get(freeze or "none", ())}:
        raise UserError(
            f"{flags[0]}: all towers are frozen; give --freeze none, vision or text, or leave {flags[0]} out."
        )


def check_locked(networks: Architecture, given: bool, frozen_is_a_flag: bool) -> None:
    """Raises UserError where a recipe would keep an image tower of random weights: none is `given`, or timm's."""
    if networks.frozen and networks.encoder is None and not given:
        other = ", or --no-frozen to train it" if frozen_is_a_flag else ""
        raise UserError(
            "the recipe keeps the image tower as it is, and random weights have nothing to teach; give --vision or "
            f"--init{other}."
        )


def set_trainable(model: Model, freeze: str | None, rank: int | None) -> None:
    """Freeze towers, and train the others by low-rank matrices if a rank is given. Raises UserError."""
    if freeze is not None and freeze not in FREEZE:
        raise UserError(f"--freeze {freeze!r} is unknown; give {', '.join(FREEZE)}.")
    frozen, pair = FREEZE[freeze] if freeze else (), model.architecture.foreign
    for name in ("vision", "text"):
        tower = getattr(model, name)
        if name in frozen and tower is None:
            raise UserError(f"--freeze {freeze}: the recipe has no {name} tower.")
        if name in frozen:
            ours = pair is None or getattr(pair, name) is None
            (tower if ours else tower.tower).requires_grad_(False)  # a head over another's tower learns
        elif rank is not None and tower is not None:
            lora.add(tower.tower, rank)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {freeze} leaves nothing to train; give another recipe or tower.")


def tower_parameters(model: Model, fitted: Fitted | None) -> set[str]:
    """The learner's parameters that `--tower-lr` slows: pretrained towers, or their LoRA matrices; never a new head."""
    brought, pair = fitted.brought if fitted else frozenset[str](), model.architecture.foreign
    others = tuple(f"{part}.tower." for part in ("vision", "text") if pair is not None and getattr(pair, part))
    return {
        f"model.{name}"
        for name, _ in model.named_parameters()
        if name.startswith(("vision.", "text."))
        and (name in brought or ".lora_" in name or (bool(others) and name.startswith(others)))
    }


def start_line(start: Pretrained, fitted: Fitted, freeze: str | None, tower_lr: float, rank: int | None) -> str:
    """What became of the start, for the start-up lines."""
    parts = [f"{start.name} ({start.format}), {len(fitted.brought)} tensors"]
    parts += [f"fresh: {', '.join(fitted.fresh)}"] if fitted.fresh else []
    parts += [f"left out: {', '.join(fitted.left_out)}"] if fitted.left_out else []
    parts += [f"resized: {', '.join(fitted.resized)}"] if fitted.resized else []
    parts += [f"frozen: {freeze}"] if freeze else []
    parts += [f"LoRA of rank {rank}"] if rank else []
    parts += [f"towers at {tower_lr} of the rate"] if tower_lr != 1 else []
    return "; ".join(parts)
