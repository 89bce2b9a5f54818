"""`opensiglip export`: write a run, or weights of another library, in a format of other tools, with a model card."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.disk import unwritten
from opensiglip.errors import UserError, first_line


def export(
    source: Annotated[str, tyro.conf.Positional],
    out: Path,
    format: Literal["hf", "onnx", "open_clip", "timm"] = "hf",
    tokenizer: str | None = None,
    push_to_hub: str | None = None,
) -> None:
    """Export a model as a folder of transformers, open_clip or timm, or as ONNX encoders.

    Args:
        source: a run, or any model that `train --init` reads: transformers, open_clip, timm or big_vision weights.
        out: output folder, new or empty.
        format: hf, for AutoModel, AutoProcessor and pipelines; onnx, verified with onnxruntime; open_clip, both towers,
            or timm, the image tower, each loaded with its library and compared.
        tokenizer: folder or hub id of a tokenizer, for weights without one.
        push_to_hub: also upload the folder to this hub repository, OWNER/NAME.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already; name a folder that is empty or not there.")
    pretrained = Pretrained.open(source)
    if pretrained.card.get("unfinished"):
        print(f"{source} is not finished: this is its newest checkpoint, after {pretrained.card['unfinished']} steps.")
    if pretrained.pipeline is None and pretrained.model.vocabulary:
        if tokenizer is not None:
            pretrained = pretrained.with_tokenizer(tokenizer)
        else:
            print(f"{source} has no tokenizer, so the export has none; name one with --tokenizer.")
    try:
        pretrained.save(out, "transformers" if format == "hf" else format, repository=push_to_hub or out.name)
    except OSError as error:
        raise unwritten(out, error) from error
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if push_to_hub is not None:
        _push(out, push_to_hub)


def _push(folder: Path, name: str) -> None:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        address = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by OpenSigLIP")
    except Exception as error:  # of the hub and the network: a dozen types
        reason = first_line(error)
        raise UserError(
            f"--push-to-hub {name} failed ({reason}); {folder} is written and can be sent later."
        ) from error
    print(address)
