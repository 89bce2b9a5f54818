"""config.json: a run is (recipe, its keywords, train's keywords), resolved and written down; what may differ later."""

import hashlib
import inspect
import platform
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from opensiglip import __version__, user_file
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.example import Source
from opensiglip.data.fingerprint import fingerprint
from opensiglip.errors import UserError
from opensiglip.json_file import load_json, write_json
from opensiglip.recipes import find_recipe
from opensiglip.training.config import TrainConfig

# What a resumed run may change.
FREE = {"resume", "changed", "trackers", "checkpointing", "memory_check", "shard", "workers", "cache_gb", "trust"}
FREE |= {"features", "features_gb"}
FREE |= {"save_every", "log_every", "keep", "keep_last"}
# A run that continues another says these itself.
OWN = {"resume", "changed", "keep", "continue_from", "trackers", "trust"}


def resolved(recipe: str, keywords: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Everything that was decided, defaults included: what config.json holds."""
    return {
        "recipe": recipe,
        "keywords": {name: plain(value) for name, value in (_keyword_defaults(recipe) | dict(keywords)).items()},
        "train": config.to_json(),
        "versions": {"opensiglip": __version__}
        | {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets")}
        | {"python": platform.python_version()},
    }


def command(record: dict[str, Any], out: Path) -> str:
    """The command line that repeats the run."""
    words = ["opensiglip", "train", record["recipe"]]
    defaults = _keyword_defaults(record["recipe"])
    for name, value in {**record["train"], **record["keywords"]}.items():
        flag = "--" + name.replace("_", "-")
        left_out = value is None and defaults.get(name) is None
        if name in ("resume", "changed") or left_out or value == []:
            continue
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag.removeprefix("--"))
            continue
        for item in value if isinstance(value, list) and name == "data" else [value]:
            words += [flag, *map(str, item)] if isinstance(item, list) else [flag, str(item)]
    return shlex.join([*words, "--out", str(out)])


def hyper_parameters(record: dict[str, Any], out: Path) -> dict[str, int | float | str | bool]:
    """A field for each argument, and the command, as trackers take them: several values in one text, none left out."""
    values = {"recipe": record["recipe"], **record["train"], **record["keywords"], "command": command(record, out)}
    joined = {name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in values.items()}
    return {name: v if isinstance(v, bool | int | float) else str(v) for name, v in joined.items() if v is not None}


def check(folder: Path, record: dict[str, Any], *, resume: bool, changed: bool) -> None:
    """Raises UserError rather than lose or mix what the run's folder holds."""
    run = RunFolder(folder)
    path = run.config
    if path.is_file() and not resume:
        if run.complete() or run.ended:
            raise UserError(f"--out {folder} already holds a run; continue it with --resume, or name another folder.")
        print(f"again       the run in {folder} has no checkpoint: it starts again", flush=True)
    if resume:
        if not path.is_file():
            raise UserError(f"--out {folder} holds no run to --resume.")
        before = stored(folder)
        found = differences(before, record) + data_differences(before, record)
        if found and not changed:
            raise UserError(f"--resume with other arguments ({'; '.join(found)}); confirm with --changed.")
        for difference in found:
            print(f"changed: {difference}", flush=True)


def claim(folder: Path) -> None:
    """Make the run's folder. Raises UserError if it can't be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} can't be made ({error.strerror}); name another folder.") from error
    try:
        (folder / ".part").touch()
        (folder / ".part").unlink()
    except OSError as error:
        raise UserError(f"--out {folder} can't be written to ({error.strerror}); name another folder.") from error


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write config.json: from here on the folder holds a run."""
    write_json(RunFolder(folder).config, record | {"command": command(record, folder)})


def of_config(path: Path, recipe: str, given: Collection[str] = (), *, trust: bool = False) -> dict[str, Any]:
    """A run's arguments, by its config.json or folder, for another run of its recipe; those `given` are left out.

    Raises UserError, also where one names a Python file that is not to be trusted, as `inherited` does.
    """
    record = read_record(RunFolder(path).config if path.is_dir() else path)
    if record.get("recipe") != recipe:
        raise UserError(
            f"--config {path} is of the recipe {record.get('recipe')}, not {recipe}; train that, or another file."
        )
    return taken(f"--config {path}", record, {"resume", "changed", "trust", *given}, trust)


def stored(run: Path) -> dict[str, Any]:
    """What a run's config.json holds. Raises UserError."""
    return read_record(RunFolder(run).config)


def read_record(path: Path) -> dict[str, Any]:
    """What a config.json holds. Raises UserError."""
    try:
        record = load_json(path)
        assert isinstance(record["train"], dict) and isinstance(record["keywords"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path} can't be read ({error or type(error).__name__}); name the folder of a run.") from error
    return dict(record)


def inherited(name: str | None, given: Collection[str] = (), *, trust: bool = False) -> dict[str, Any]:
    """The arguments of the run to continue, which hold where the one that goes on from it says nothing else.

    `given`: those that it does say, left out. Raises UserError where one of the others names a Python file, a task's
    or a data set's, unless it is to `trust` the run: a run may come from anyone, and the file would be run.
    """
    if name is None:
        return {}
    return taken(f"--continue-from {name}", stored(run_of(name)), {*OWN, *given}, trust)


def taken(source: str, record: Mapping[str, Any], but: Collection[str], trust: bool) -> dict[str, Any]:
    """The arguments of a run's record, without those named in `but`; `source` is the flag that asks for them."""
    values = {key: value for key, value in {**record["train"], **record["keywords"]}.items() if key not in but}
    for key, value in values.items():
        if not trust and (file := user_file.named_in(value)) is not None:
            flag = f"--{key.replace('_', '-')}"
            raise UserError(
                f"{source}: that run's {flag} is {file}, a Python file that would be run; read the file and give "
                f"--trust, or give {flag} yourself."
            )
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def run_of(name: str) -> Path:
    """The folder of the run that `name` is, or is a checkpoint of. Raises UserError."""
    for run in (RunFolder(Path(name)), RunFolder.of_checkpoint(Path(name))):
        if run.config.is_file():
            return run.path
    raise UserError(f"--continue-from {name} is not a run; give a run's folder, or a checkpoint in it.")


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The arguments in which two runs differ, of those that change a result; one that was not written had its default.

    So runs of versions that lacked an argument are as if it had been left alone.
    """
    defaults = {"keywords": _keyword_defaults(now["recipe"]), "train": _train_defaults()}
    pairs = [("recipe", before.get("recipe"), now["recipe"])]
    for part, missing in defaults.items():
        old, new = before.get(part, {}), now[part]
        names = [name for name in {**old, **new} if name not in FREE]
        pairs += [(name, old.get(name, plain(missing.get(name))), new.get(name)) for name in names]
    return [f"{name}: {old!r} before, {new!r} now" for name, old, new in pairs if old != new]


def fingerprints(sources: Sequence[Source]) -> dict[str, str]:
    """By source: a hash of how many examples it has and of its first texts. Pixels are not read."""
    return {source.name: fingerprint(source) for source in sources}


def weights_digests(sources: Sequence[Source]) -> dict[str, str]:
    """By source that has `example_weights`: a hash of them."""
    weights = {source.name: source.example_weights for source in sources}
    return {name: hashlib.sha256(own.tobytes()).hexdigest()[:16] for name, own in weights.items() if own is not None}


def data_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The sources whose content or example weights differ, of those that both runs name; none where none were noted."""
    found = []
    for noted, what in (("fingerprints", "examples"), ("example_weights", "example weights")):
        old, new = before.get(noted, {}), now[noted]
        found += [f"data: {name} has other {what} than before" for name in new if old.get(name, new[name]) != new[name]]
    return found


def plain(value: Any) -> Any:
    """A keyword's value as JSON holds it."""
    return list(value) if isinstance(value, tuple) else value


def _keyword_defaults(recipe: str) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(find_recipe(recipe)).parameters.items()}


def _train_defaults() -> dict[str, Any]:
    return {field.name: field.default for field in fields(TrainConfig) if field.default is not MISSING}
