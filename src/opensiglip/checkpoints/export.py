"""`opensiglip export`: a run, or weights of another make, as a transformers folder or as ONNX, with a model card."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from transformers.utils import logging

from opensiglip.checkpoints.checkpoint import Checkpoint, most_patches, read_json
from opensiglip.checkpoints.fit import assemble
from opensiglip.checkpoints.formats.onnx import write_onnx
from opensiglip.checkpoints.model_card import card_of, write_card, write_processor
from opensiglip.checkpoints.read import read
from opensiglip.checkpoints.tokenizer import text_of
from opensiglip.checkpoints.unfinished import unfinished
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models.model import SIDECAR, Model, read_sidecar
from opensiglip.models.sizes import spell


def export(
    source: Annotated[str, tyro.conf.Positional],
    out: Path,
    format: Literal["hf", "onnx"] = "hf",
    tokenizer: str | None = None,
    push_to_hub: str | None = None,
) -> None:
    """Write a model as other tools load it: a transformers folder, or ONNX encoders of images and texts.

    Args:
        source: a run, or whatever `train --init` reads: transformers, open_clip, timm or big_vision weights.
        out: the folder to write, not there yet or empty.
        format: hf, for AutoModel, AutoProcessor and pipelines; or onnx, checked by onnxruntime.
        tokenizer: folder or hub id, for weights that come without their own.
        push_to_hub: OWNER/NAME of the hub's repository that the folder is sent to as well.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already; name a folder that is empty or not there.")
    checkpoint = read(source)
    model = assemble(checkpoint).eval()
    pipeline = _pipeline(checkpoint, model, tokenizer)
    about: dict[str, Any] = {}
    if checkpoint.text is not None and checkpoint.folder is not None:
        about = read_sidecar(checkpoint.folder)
    most = most_patches(checkpoint.folder)
    out.mkdir(parents=True, exist_ok=True)
    if pipeline is not None:
        about["text"] = pipeline.save_pretrained(out)
    write_processor(out, model, pipeline, most)
    if format == "hf":
        model.save_pretrained(out, about)
    else:
        about |= write_onnx(out, model)
        (out / SIDECAR).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    name = push_to_hub or str(out.name)
    write_card(out, model, _card(checkpoint, model), name, onnx=format == "onnx", most=most)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if push_to_hub is not None:
        _push(out, push_to_hub)


def _pipeline(checkpoint: Checkpoint, model: Model, tokenizer: str | None) -> TextPipeline | None:
    length, rows = model.architecture.length, checkpoint.vocabulary
    if checkpoint.text is not None and checkpoint.folder is not None:
        return TextPipeline.from_pretrained(checkpoint.folder, checkpoint.text)
    place = tokenizer or checkpoint.folder
    found = text_of(place, length=length, vocabulary=rows, name=checkpoint.name) if rows and place else None
    if rows and found is None:
        print(f"{checkpoint.name} has no tokenizer and neither has the export; --tokenizer names the one it needs.")
    return found


def _card(checkpoint: Checkpoint, model: Model) -> dict[str, Any]:
    if checkpoint.text is not None and checkpoint.folder is not None:
        run = checkpoint.folder.parent
        config, summary = read_json(run / "config.json"), read_json(run / "summary.json")
        if "train" in config and (newest := unfinished(checkpoint.folder)):
            state = read_json(newest / "state.json")
            print(f"{run} has not ended: this is its newest checkpoint, after {state['step']} steps.")
            steps = f"{state['step']} (the run had not ended)"
            summary = {"command": config["command"], "steps": steps, "images_seen": state["read"], "figures": {}}
        if "train" in config and "figures" in summary:
            return card_of(config, summary)
    size = model.architecture.encoder or spell(model.architecture)
    origin = f"{Path(checkpoint.name).name} ({checkpoint.kind})"
    return {"title": Path(checkpoint.name).name, "origin": origin, "size": size, "data": [], "base": checkpoint.name}


def _push(folder: Path, name: str) -> None:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        address = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by OpenSigLIP")
    except Exception as error:  # of the hub and the network: a dozen types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"--push-to-hub {name} failed ({reason}); {folder} is written and can be sent later."
        ) from error
    print(address)
