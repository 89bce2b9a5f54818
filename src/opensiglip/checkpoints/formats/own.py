"""Our own: RUN, its model/ folder, a checkpoint, or an export; of a run that has not ended, its newest checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from opensiglip.checkpoints.contents import Contents, frame_of, most_patches
from opensiglip.checkpoints.fit import OURS
from opensiglip.checkpoints.manifest import read_state, sound, verify
from opensiglip.checkpoints.run_folder import RunFolder, learner_of
from opensiglip.checkpoints.source import read_json
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError, first_line
from opensiglip.json_file import SIDECAR, write_json
from opensiglip.models import averaged_head, lora
from opensiglip.models.limits import check_room, stored_in
from opensiglip.models.model import Model, read_sidecar
from opensiglip.models.sizes import Architecture


def find(place: Path) -> Path | None:
    """The folder to read at `place`: itself, the model/ of a run, or a checkpoint; None where nothing there is ours.

    Raises UserError where a run has neither ended nor a checkpoint.
    """
    run = RunFolder(place)
    if run.begun and not run.ended:
        return newest(run)
    if learner_of(place).is_file():
        verify(place)
        return place
    folder = next((folder for folder in (place, run.model) if (folder / SIDECAR).is_file()), None)
    owner = RunFolder.of_model(place)
    if folder == place and place.name == owner.model.name and owner.begun and not owner.ended:
        return newest(owner)
    return folder


def newest(run: RunFolder) -> Path:
    """The newest checkpoint that is as it was written. Raises UserError where there is none."""
    found = sound(run)
    if found is None:
        raise UserError(
            f"{run.path} is a run that has not ended and has no checkpoint yet: continue it with --resume, "
            "or train it again with a smaller --save-every."
        )
    return found


def described(checkpoint: Path) -> Path:
    """The folder with sidecar and tokenizer of a checkpoint: itself, or one of its run for those of older versions."""
    run = RunFolder.of_checkpoint(checkpoint)
    return next((place for place in (checkpoint, run.start) if (place / SIDECAR).is_file()), run.model)


def read(place: Path, name: str) -> Contents:
    """What lies where `find` says. Raises UserError on a sidecar that lacks what its model needs."""
    checkpoint = place if learner_of(place).is_file() else None
    folder = place if checkpoint is None else described(place)
    run = RunFolder.of_model(place) if checkpoint is None else RunFolder.of_checkpoint(checkpoint)
    facts = read_sidecar(folder)
    model = Model.from_pretrained(folder) if checkpoint is None else of_checkpoint(checkpoint, folder, facts)
    if model.architecture.encoder is not None:  # the weights are here, not where they once came from
        model.architecture = replace(model.architecture, encoder=str(folder))
    try:
        written = facts if model.decoder or model.pali else {"boxes": None, "tasks": ()} | facts
        boxes = None if written["boxes"] is None else BoxFormat.parse(written["boxes"])
        tasks, languages = tuple(written["tasks"]), tuple(facts.get("languages", ()))
        pipeline = None
        if "text" in facts or model.text or tasks:
            pipeline = TextPipeline.from_pretrained(folder, facts["text"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / SIDECAR} lacks {first_line(error)}; export the run again.") from error
    frame = frame_of(model.architecture, most_patches(folder) if model.architecture.naflex else None)
    card = card_of(run, checkpoint) | ({"recipe": facts["recipe"]} if "recipe" in facts else {})
    return Contents(name, model.eval(), frame, OURS, pipeline, boxes, tasks, languages, card)


def of_checkpoint(checkpoint: Path, folder: Path, facts: dict[str, Any]) -> Model:
    """The model in a checkpoint that is described by the sidecar `facts` of `folder`, low-rank matrices merged.

    Raises UserError where it can't be read.
    """
    try:
        architecture, vocabulary = Architecture.from_json(facts["architecture"]), int(facts["vocabulary"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / SIDECAR} does not describe a model ({first_line(error)}); --resume the run."
        ) from error
    with torch.device("meta"):  # without the encoder of another library, which checks its own size
        skeleton = Model.new(replace(architecture, encoder=None), vocabulary)
    check_room(folder / SIDECAR, skeleton, stored_in(checkpoint))
    with torch.random.fork_rng(devices=[]):
        model = Model.new(architecture, vocabulary)
    try:
        learner = load_file(learner_of(checkpoint))
        state = {name.removeprefix("model."): x for name, x in learner.items() if name.startswith("model.")}
        ranks = {name.split(".")[0]: len(x) for name, x in state.items() if ".lora_A." in name}
        for tower, rank in ranks.items():
            lora.add(getattr(model, tower).tower, rank)
        if any(".head.average." in name for name in state):
            averaged_head.add(model)
        model.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(
            f"checkpoint {checkpoint} can't be read ({reason}); delete that folder, or --resume."
        ) from error
    lora.merge(model)
    averaged_head.settle(model)
    return model


def card_of(run: RunFolder, checkpoint: Path | None = None) -> dict[str, Any]:
    """What a model card says of a run, as a checkpoint has it where one is given; empty without a run.

    Raises UserError on JSON that can't be read.
    """
    config, summary = read_json(run.config), read_json(run.summary)
    if "train" not in config:
        return {}
    if checkpoint is not None:
        state = read_state(checkpoint)
        steps = state["step"] if run.ended else f"{state['step']} (the run had not ended)"
        summary = {"command": config["command"], "steps": steps, "images_seen": state["read"], "figures": {}}
        unfinished = {} if run.ended else {"unfinished": state["step"]}
        return training_card(config, summary) | unfinished
    return training_card(config, summary) if "figures" in summary else {}


def training_card(config: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """What a model card says of a run of this config and summary."""
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


def describe(
    folder: Path, architecture: Architecture, pipeline: TextPipeline, boxes: BoxFormat, tasks: tuple[str, ...]
) -> None:
    """Write into a folder what a checkpoint is opened by: the tokenizer, and the sidecar on model and texts."""
    facts = {"architecture": architecture.to_json(), "vocabulary": len(pipeline)}
    facts |= {"text": pipeline.save_pretrained(folder), "boxes": str(boxes), "tasks": list(tasks)}
    write_json(folder / SIDECAR, facts)


def read_pipeline(folder: Path) -> TextPipeline:
    """The text pipeline of a folder with sidecar and tokenizer. Raises UserError."""
    facts = read_sidecar(folder)
    if "text" not in facts:
        raise UserError(f"{folder / SIDECAR} lacks 'text'; name another run.")
    return TextPipeline.from_pretrained(folder, facts["text"])
