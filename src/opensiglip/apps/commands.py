"""The registry of commands: a name, one line of help, the function behind it. Nothing here imports torch."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from opensiglip.apps import signature
from opensiglip.apps.plan import plans
from opensiglip.apps.train import recipes
from opensiglip.disk import refusals, writable
from opensiglip.errors import UserError

CLONE = Path(__file__).parents[3]  # in a clone it holds benchmarks/ and studies/; a wheel has neither


class Runnable(Protocol):
    """What a command is to the command line: help, flags, and a call."""

    @property
    def help(self) -> str: ...

    def flags(self, words: Sequence[str]) -> tuple[inspect.Signature, str]:
        """Signature and docstring that the flags are made from; `words` are what follows the command's name."""

    def call(self, flags: Mapping[str, Any]) -> None:
        """Do it."""


@dataclass(frozen=True)
class Command:
    """A function whose parameters are the flags, read without importing its module."""

    help: str
    module: str
    function: str
    light: bool = False  # it calls no library that is to be quiet

    def flags(self, words: Sequence[str]) -> tuple[inspect.Signature, str]:
        """The function's own. Raises UserError where its module is not installed."""
        beside_the_package(self.module)
        return signature.read(self.module, self.function)

    def call(self, flags: Mapping[str, Any]) -> None:
        """Import the module and call the function. Raises UserError where the disk refuses what goes to --out."""
        function = getattr(import_module(self.module), self.function)
        if not self.light:
            import_module("opensiglip.apps.quiet").quiet_libraries()
        out = flags.get("out")
        with nullcontext() if out is None else refusals(Path(out), "make room, or name another --out"):
            function(**flags)


class Measurement(Command):
    """A command of benchmarks/: minutes of work are not to end at a folder that can't be written to."""

    def call(self, flags: Mapping[str, Any]) -> None:
        """Raises UserError before anything is measured."""
        if "out" in flags:
            writable(flags["out"])
        super().call(flags)


@dataclass(frozen=True)
class Group:
    """Commands below a word, such as the recipes below `train`."""

    help: str
    kind: str  # what errors call one of its commands
    members: Callable[[Sequence[str]], Mapping[str, Any]]  # Runnable or Group; of what follows the group's name
    also: str = ""  # what else may stand there


def beside_the_package(module: str) -> None:
    """Make benchmarks/ and studies/ importable, which lie at the root of a clone. Raises UserError without one."""
    name = module.partition(".")[0]
    if name == "opensiglip":
        return
    if not (CLONE / name / "__init__.py").is_file():
        raise UserError(
            f"{name} are not part of the installed package; clone the repository and run `make setup` there."
        )
    if str(CLONE) not in sys.path:
        sys.path.insert(0, str(CLONE))


def shown(words: Sequence[str]) -> dict[str, Runnable]:
    """What `opensiglip data` has."""
    told = {
        "show": "what is in a source, and a contact sheet with boxes drawn",
        "stats": "sizes, lengths, languages, boxes, copies, broken rows; as a page with --out",
        "index": "index all tars of a source, in parallel",
        "fetch": "fetch a list of links into tars; dead ones are counted",
        "convert": "write a source anew as tars, parquet or a folder",
        "split": "the same with train, val and test drawn by a hash",
    }
    weighed = {
        "balance": "weights that balance attributes, such as gender and occupation",
        "dedup": "weights that leave out copies, and what held-out data holds",
    }
    homes = {"opensiglip.apps.data": told, "opensiglip.apps.weights": weighed}
    return {name: Command(help, home, name) for home, commands in homes.items() for name, help in commands.items()}


def measured(words: Sequence[str]) -> dict[str, Runnable]:
    """The measurements of benchmarks/; the help of each is its docstring's first line."""
    beside_the_package("benchmarks")
    homes = {name: f"benchmarks.{name.replace('-', '_')}" for name in import_module("benchmarks").BENCHES}
    return {name: Measurement(signature.summary(home, "bench"), home, "bench") for name, home in homes.items()}


COMMANDS: dict[str, Command | Group] = {
    "train": Group("train a recipe", "recipe", recipes, also="FILE.py:FUNCTION"),
    "plan": Group("what a run will need: memory, FLOP, days", "recipe", plans, also="FILE.py:FUNCTION"),
    "eval": Command("judge a model: retrieval, zero-shot, probes, ...", "opensiglip.apps.evaluate", "command"),
    "compare": Command("models side by side, with paired intervals", "opensiglip.apps.evaluate", "compare"),
    "export": Command(
        "write a model for transformers, open_clip, timm or ONNX", "opensiglip.checkpoints.export", "export"
    ),
    "recipes": Command("the table of recipes: paper, objectives, tasks", "opensiglip.apps.recipes", "recipes"),
    "data": Group("look at data, count it, write it anew", "data command", shown),
    "tokenizer": Group(
        "make a tokenizer",
        "tokenizer command",
        lambda words: {"train": Command("of the texts of sources", "opensiglip.apps.tokenizer", "train")},
    ),
    "predict": Command("captions, boxes, labels, answers for image files", "opensiglip.apps.predict", "predict"),
    "demo": Command("the same in a web page, on this machine", "opensiglip.apps.demo.demo", "demo"),
    "serve": Command("a model behind OpenAI's embeddings API, and more", "opensiglip.apps.serve.serve", "serve"),
    "search-index": Command("embed a folder of images, to search it often", "opensiglip.apps.search", "search_index"),
    "search": Command("the images of an index nearest to a text or an image", "opensiglip.apps.search", "search"),
    "annotate": Command(
        "boxes for your own photos, by an open-vocabulary detector", "opensiglip.apps.annotate.annotate", "annotate"
    ),
    "completion": Command(
        "completion of commands and flags for bash, zsh and fish", "opensiglip.apps.completion", "script", light=True
    ),
    "study": Command("recipes compared at equal data, steps and seeds", "studies.command", "study"),
    "bench": Group("the measurements behind claims on speed, each beside its peers", "measurement", measured),
}
