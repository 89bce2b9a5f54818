"""Our own: RUN, its model/ folder, or an export; of a run that has not ended, its newest whole checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from opensiglip.checkpoints.contents import Contents, frame_of, most_patches
from opensiglip.checkpoints.fit import OURS
from opensiglip.checkpoints.run_folder import RunFolder, learner_of, state_of
from opensiglip.checkpoints.source import first_line, read_json
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.json_file import write_json
from opensiglip.models import lora
from opensiglip.models.model import SIDECAR, Model, read_sidecar
from opensiglip.models.sizes import Architecture


def read(folder: Path, name: str) -> Contents:
    """What lies in a folder with opensiglip.json. Raises UserError on a sidecar that lacks what its model needs."""
    facts, run = read_sidecar(folder), RunFolder.of_model(folder)
    newest = run.killed() if folder.name == run.model.name else None
    model = Model.from_pretrained(folder) if newest is None else of_checkpoint(newest, folder, facts)
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
        raise UserError(f"{folder / SIDECAR} lacks {error}; export the run again.") from error
    frame = frame_of(model.architecture, most_patches(folder) if model.architecture.naflex else None)
    card = card_of(run, newest) | ({"recipe": facts["recipe"]} if "recipe" in facts else {})
    return Contents(name, model.eval(), frame, OURS, pipeline, boxes, tasks, languages, card)


def of_checkpoint(checkpoint: Path, folder: Path, facts: dict[str, Any]) -> Model:
    """The model in a checkpoint of a run whose model/ has the sidecar `facts`, low-rank matrices merged.

    Raises UserError where it can't be read.
    """
    try:
        architecture, vocabulary = Architecture.from_json(facts["architecture"]), int(facts["vocabulary"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / SIDECAR} does not describe a model ({error}); --resume the run.") from error
    with torch.random.fork_rng(devices=[]):
        model = Model.new(architecture, vocabulary)
    try:
        learner = load_file(learner_of(checkpoint))
        state = {name.removeprefix("model."): x for name, x in learner.items() if name.startswith("model.")}
        ranks = {name.split(".")[0]: len(x) for name, x in state.items() if ".lora_A." in name}
        for tower, rank in ranks.items():
            lora.add(getattr(model, tower).tower, rank)
        model.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(
            f"checkpoint {checkpoint} can't be read ({reason}); delete that folder, or --resume."
        ) from error
    lora.merge(model)
    return model


def card_of(run: RunFolder, newest: Path | None = None) -> dict[str, Any]:
    """What a model card says of a run, as its newest checkpoint has it where it has not ended; empty without a run.

    Raises UserError on JSON that can't be read.
    """
    config, summary = read_json(run.config), read_json(run.summary)
    if "train" not in config:
        return {}
    if newest is not None:
        state = read_json(state_of(newest))
        steps = f"{state['step']} (the run had not ended)"
        summary = {"command": config["command"], "steps": steps, "images_seen": state["read"], "figures": {}}
        return training_card(config, summary) | {"unfinished": state["step"]}
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


def begin(
    run: RunFolder, architecture: Architecture, pipeline: TextPipeline, boxes: BoxFormat, tasks: tuple[str, ...]
) -> None:
    """Write what a killed run is opened by: the tokenizer, and the sidecar that describes model and texts."""
    run.model.mkdir(parents=True, exist_ok=True)
    facts = {"architecture": architecture.to_json(), "vocabulary": len(pipeline)}
    facts |= {"text": pipeline.save_pretrained(run.model), "boxes": str(boxes), "tasks": list(tasks)}
    write_json(run.model / SIDECAR, facts)


def read_pipeline(run: RunFolder) -> TextPipeline:
    """The text pipeline of a run, ended or not. Raises UserError."""
    facts = read_sidecar(run.model)
    if "text" not in facts:
        raise UserError(f"{run.model / SIDECAR} lacks 'text'; name another run.")
    return TextPipeline.from_pretrained(run.model, facts["text"])
