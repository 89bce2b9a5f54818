"""A run is (recipe, its keywords, train's keywords): resolved, checked and written down."""

import inspect
import json
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from opensiglip import __version__
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.errors import UserError
from opensiglip.json_file import write_json
from opensiglip.recipes import RECIPES, Recipe, RecipeFunction
from opensiglip.user_file import load

# What a resumed run may change.
FREE = {"checkpointing", "resume", "changed", "workers", "trackers", "save_every", "log_every", "keep"}
OWN = {"resume", "changed", "keep", "continue_from", "trackers"}  # a run that continues another says these itself


def find(recipe: str) -> RecipeFunction:
    """The recipe function of that name, or FILE.py:FUNCTION of the user's own. Raises UserError."""
    if recipe in RECIPES:
        return RECIPES[recipe]
    file, _, name = recipe.rpartition(":")
    if file.endswith(".py"):
        function = load("recipe", file, name)
        if not callable(function):
            raise UserError(f"{file} has no function {name!r}; name the one that returns a Recipe.")
        return cast(RecipeFunction, function)
    raise UserError(f"no such recipe: {recipe!r}; recipes are {', '.join(RECIPES)}, or FILE.py:FUNCTION.")


def build(function: RecipeFunction, keywords: dict[str, Any]) -> Recipe:
    """Call the recipe. Raises UserError on keywords it does not have."""
    known = inspect.signature(function).parameters
    unknown = [name for name in keywords if name not in known]
    if unknown:
        raise UserError(f"recipe {function.__name__} has no {unknown[0]!r}; its keywords are {', '.join(known)}.")
    return function(**keywords)


def resolved(
    recipe: str, function: RecipeFunction, keywords: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, Any]:
    """Everything that was decided, defaults included: what config.json holds."""
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    values = {name: list(v) if isinstance(v, list | tuple) else v for name, v in arguments.items()}
    return {
        "recipe": recipe,
        "keywords": {name: list(v) if isinstance(v, tuple) else v for name, v in (defaults | keywords).items()},
        "train": values,
        "versions": {"opensiglip": __version__}
        | {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets")}
        | {"python": platform.python_version()},
    }


def command(config: dict[str, Any], out: Path) -> str:
    """The command line that repeats the run."""
    words = ["opensiglip", "train", config["recipe"]]
    known = inspect.signature(find(config["recipe"])).parameters
    for name, value in {**config["train"], **config["keywords"]}.items():
        flag = "--" + name.replace("_", "-")
        unsaid = value is None and (name not in known or known[name].default is None)
        if name in ("resume", "changed") or unsaid or value == []:
            continue
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag.removeprefix("--"))
            continue
        for item in value if isinstance(value, list) and name == "data" else [value]:
            words += [flag, *map(str, item)] if isinstance(item, list) else [flag, str(item)]
    return shlex.join([*words, "--out", str(out)])


def check(folder: Path, config: dict[str, Any], *, resume: bool, changed: bool) -> None:
    """Raises UserError rather than lose or mix what the run's folder holds."""
    path = RunFolder(folder).config
    if path.is_file() and not resume:
        raise UserError(f"--out {folder} already holds a run; go on with --resume, or name another folder.")
    if resume:
        if not path.is_file():
            raise UserError(f"--out {folder} holds no run to --resume.")
        found = differences(stored(folder), config)
        if found and not changed:
            raise UserError(f"--resume with other arguments ({'; '.join(found)}); confirm with --changed.")
        for difference in found:
            print(f"changed: {difference}", flush=True)


def claim(folder: Path) -> None:
    """Make the run's folder. Raises UserError if it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} can't be made ({error.strerror}).") from error


def record(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json: from here on the folder holds a run."""
    write_json(RunFolder(folder).config, config | {"command": command(config, folder)})


def stored(run: Path) -> dict[str, Any]:
    """What a run's config.json holds. Raises UserError."""
    path = RunFolder(run).config
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(config["train"], dict) and isinstance(config["keywords"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path} can't be read ({error or type(error).__name__}); name the folder of a run.") from error
    return dict(config)


def inherited(name: str | None) -> dict[str, Any]:
    """The arguments of the run to continue, which hold where the one that goes on from it says nothing else."""
    if name is None:
        return {}
    config = stored(run_of(name))
    values = {**config["train"], **config["keywords"]}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key not in OWN}


def run_of(name: str) -> Path:
    """The folder of the run that `name` is, or is a checkpoint of. Raises UserError."""
    for run in (RunFolder(Path(name)), RunFolder.of_checkpoint(Path(name))):
        if run.config.is_file():
            return run.path
    raise UserError(f"--continue-from {name} is no run; give a run's folder, or a checkpoint in it.")


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The arguments in which two runs differ, of those that change a result."""
    pairs = [("recipe", before.get("recipe"), now["recipe"])]
    for part in ("keywords", "train"):
        old, new = before.get(part, {}), now[part]
        pairs += [(name, old.get(name), new.get(name)) for name in {**old, **new} if name not in FREE]
    return [f"{name}: {old!r} before, {new!r} now" for name, old, new in pairs if old != new]
