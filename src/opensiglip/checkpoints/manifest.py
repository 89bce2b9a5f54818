"""manifest.json of a checkpoint: its step, and of every file the size and a hash, written last and checked on reading.

The hash is XXH3 of 128 bits: it is made for damage, not for forgery, and runs at the speed of memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open

from opensiglip.checkpoints.run_folder import RunFolder, learner_of, manifest_of, optimizer_of, state_of
from opensiglip.errors import UserError, first_line
from opensiglip.json_file import load_json, write_json

BLOCK = 2**24  # bytes that are hashed at a time
COUNTS = ("step", "skipped_steps", "read")  # of a checkpoint's state


class Damaged(UserError):
    """A checkpoint that is not as it was written."""


def write_manifest(checkpoint: Path, step: int) -> None:
    """Of all files that the folder holds."""
    files = {
        str(path.relative_to(checkpoint)): checksum_of(path) for path in sorted(checkpoint.rglob("*")) if path.is_file()
    }
    write_json(manifest_of(checkpoint), {"step": step, "files": files})


def verify(checkpoint: Path, say: Callable[[str], object] = print) -> dict[str, Any]:
    """The state in a checkpoint whose every file is as it was written. Raises Damaged.

    One of a version without manifests is read as far as it can be judged without one, which is said.
    """
    state = read_state(checkpoint)
    if not manifest_of(checkpoint).exists():
        say(f"{checkpoint} was written without checksums: its contents are not verified.")
        for file in (learner_of(checkpoint), optimizer_of(checkpoint)):
            try:
                with safe_open(file, "pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise damaged(checkpoint, f"{file.name}: {first_line(error)}") from error
        return state
    try:
        manifest = load_json(manifest_of(checkpoint))
        files = {str(name): (fact["bytes"], fact["xxh3_128"]) for name, fact in manifest["files"].items()}
        step = int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(checkpoint, f"{manifest_of(checkpoint).name}: {first_line(error)}") from error
    if step != state["step"]:
        raise damaged(checkpoint, f"{manifest_of(checkpoint).name} is of step {step}")
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if not path.is_file():
            raise damaged(checkpoint, f"{name} is missing")
        if path.stat().st_size != size:
            raise damaged(checkpoint, f"{name} has {path.stat().st_size} bytes, {size} were written")
        try:
            if checksum_of(path)["xxh3_128"] != digest:
                raise damaged(checkpoint, f"{name} holds other bytes than were written")
        except OSError as error:
            raise damaged(checkpoint, f"{name}: {first_line(error)}") from error
    return state


def sound(run: RunFolder, say: Callable[[str], object] = print) -> Path | None:
    """The newest checkpoint that is as it was written; None where none was saved. What is passed over is said.

    Raises Damaged where all are damaged.
    """
    found = run.complete()[::-1]
    for place, checkpoint in enumerate(found):
        try:
            verify(checkpoint, say)
        except Damaged as error:
            if checkpoint == found[-1]:
                words = "and so are those after it" if place else "and there is no other"
                raise Damaged(f"{error} {words}; train the run again in another folder.") from error
            say(f"{error}; the one before, {found[place + 1].name}, is used.")
            continue
        return checkpoint
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What state.json says, its numbers being numbers. Raises Damaged."""
    try:
        state = load_json(state_of(checkpoint))
        counts = {name: state[name] for name in COUNTS}
        skipped, progress = dict(state["skipped_examples"]), state.get("progress", 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(checkpoint, f"{state_of(checkpoint).name}: {first_line(error)}") from error
    wrong = [name for name, count in counts.items() if type(count) is not int or count < 0]
    wrong += [] if isinstance(progress, int | float) and 0 < progress <= 1 and state["step"] > 0 else ["progress"]
    wrong += [] if all(type(count) is int for count in skipped.values()) else ["skipped_examples"]
    if wrong:
        raise damaged(checkpoint, f"{state_of(checkpoint).name}: {wrong[0]} is no such number")
    if checkpoint.name.startswith("step-") and checkpoint.name != RunFolder(checkpoint).checkpoint(state["step"]).name:
        raise damaged(checkpoint, f"{state_of(checkpoint).name} is of step {state['step']}")
    return dict(state)


def damaged(checkpoint: Path, reason: str) -> Damaged:
    """The error, with what is wrong."""
    return Damaged(f"checkpoint {checkpoint} is damaged ({reason})")


def checksum_of(path: Path) -> dict[str, Any]:
    """A file's bytes and hash."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}
