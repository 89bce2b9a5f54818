"""A run is (recipe, its keywords, train's keywords): resolved, checked and written down."""

import importlib.util
import inspect
import json
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from opensiglip import __version__
from opensiglip.errors import UserError
from opensiglip.recipes import RECIPES, Recipe, RecipeFunction
from opensiglip.train.checkpoint import write_json

# What a resumed run may change.
FREE = {"checkpointing", "resume", "changed", "workers", "trackers", "save_every", "log_every"}


def find(recipe: str) -> RecipeFunction:
    """The recipe function of that name, or FILE.py:FUNCTION of the user's own. Raises UserError."""
    if recipe in RECIPES:
        return RECIPES[recipe]
    file, _, name = recipe.rpartition(":")
    if file.endswith(".py"):
        path = Path(file)
        if not path.is_file():
            raise UserError(f"recipe file {file} does not exist.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if not callable(function):
            raise UserError(f"{file} has no function {name!r}; name the one that returns a Recipe.")
        return function
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
        "keywords": defaults | keywords,
        "train": values,
        "versions": {"opensiglip": __version__}
        | {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets")}
        | {"python": platform.python_version()},
    }


def command(config: dict[str, Any], out: Path) -> str:
    """The command line that repeats the run."""
    words = ["opensiglip", "train", config["recipe"]]
    for name, value in {**config["train"], **config["keywords"]}.items():
        flag = "--" + name.replace("_", "-")
        if name in ("resume", "changed") or value is None or value == []:
            continue
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag.removeprefix("--"))
            continue
        for item in value if isinstance(value, list) and name == "data" else [value]:
            words += [flag, *map(str, item)] if isinstance(item, list) else [flag, str(item)]
    return shlex.join([*words, "--out", str(out)])


def check(folder: Path, config: dict[str, Any], *, resume: bool, changed: bool) -> None:
    """Raises UserError rather than lose or mix what the run's folder holds."""
    path = folder / "config.json"
    if path.is_file() and not resume:
        raise UserError(f"--out {folder} already holds a run; go on with --resume, or name another folder.")
    if resume:
        if not path.is_file():
            raise UserError(f"--out {folder} holds no run to --resume.")
        before = json.loads(path.read_text(encoding="utf-8"))
        differences = list(_differences(before, config))
        if differences and not changed:
            raise UserError(f"--resume with other arguments ({'; '.join(differences)}); confirm with --changed.")
        for difference in differences:
            print(f"changed: {difference}", flush=True)


def claim(folder: Path) -> None:
    """Make the run's folder. Raises UserError if it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} can't be made ({error.strerror}).") from error


def record(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json: from here on the folder holds a run."""
    write_json(folder / "config.json", config | {"command": command(config, folder)})


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    pairs = [("recipe", before.get("recipe"), now["recipe"])]
    for part in ("keywords", "train"):
        old, new = before.get(part, {}), now[part]
        pairs += [(name, old.get(name), new.get(name)) for name in {**old, **new} if name not in FREE]
    return [f"{name}: {old!r} before, {new!r} now" for name, old, new in pairs if old != new]
