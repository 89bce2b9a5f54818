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
    """The interface of a command: help, flags, and a call."""

    @property
    def help(self) -> str: ...

    def flags(self, words: Sequence[str]) -> tuple[inspect.Signature, str]:
        """Signature and docstring that the flags are made from; `words` follow the command's name."""

    def call(self, flags: Mapping[str, Any]) -> None:
        """Run the command."""


@dataclass(frozen=True)
class Command:
    """A function whose parameters are the flags, read without importing its module."""

    help: str
    module: str
    function: str
    light: bool = False  # it calls no library whose output must be silenced

    def flags(self, words: Sequence[str]) -> tuple[inspect.Signature, str]:
        """The function's own. Raises UserError where its module is not installed."""
        beside_the_package(self.module)
        return signature.read(self.module, self.function)

    def call(self, flags: Mapping[str, Any]) -> None:
        """Import the module and call the function. Raises UserError if --out cannot be written."""
        function = getattr(import_module(self.module), self.function)
        if not self.light:
            import_module("opensiglip.apps.quiet").quiet_libraries()
        out = flags.get("out")
        with nullcontext() if out is None else refusals(Path(out), "make room, or name another --out"):
            function(**flags)


class Measurement(Command):
    """A command of benchmarks/, which checks that --out can be written before it works for minutes."""

    def call(self, flags: Mapping[str, Any]) -> None:
        """Raises UserError before anything is measured."""
        if "out" in flags:
            writable(flags["out"])
        super().call(flags)


@dataclass(frozen=True)
class Group:
    """Commands below a word, such as the recipes below `train`."""

    help: str
    kind: str  # the noun for one of its commands in errors
    members: Callable[
        [Sequence[str]], Mapping[str, Any]
    ]  # Runnable or Group by name, given the words after the group's name
    also: str = ""  # another form that is accepted


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
    """The commands of `opensiglip data`."""
    told = {
        "show": "show what a source contains, and draw a contact sheet with boxes",
        "stats": "count sizes, lengths, languages, boxes, copies and broken rows; as a page with --out",
        "index": "index all tars of a source, in parallel",
        "fetch": "fetch a list of links into tars; dead links are counted",
        "convert": "convert a source to tars, parquet or a folder",
        "split": "convert a source with new splits train, val and test, drawn by a hash",
    }
    weighed = {
        "balance": "compute weights that balance attributes, such as gender and occupation",
        "dedup": "compute weights that leave out copies and images of held-out data",
    }
    homes = {"opensiglip.apps.data": told, "opensiglip.apps.weights": weighed}
    return {name: Command(help, home, name) for home, commands in homes.items() for name, help in commands.items()}


def measured(words: Sequence[str]) -> dict[str, Runnable]:
    """The commands of benchmarks/; the help of each is the first line of its docstring."""
    beside_the_package("benchmarks")
    homes = {name: f"benchmarks.{name.replace('-', '_')}" for name in import_module("benchmarks").BENCHES}
    return {name: Measurement(signature.summary(home, "bench"), home, "bench") for name, home in homes.items()}


COMMANDS: dict[str, Command | Group] = {
    "train": Group("train a recipe", "recipe", recipes, also="FILE.py:FUNCTION"),
    "plan": Group("estimate what a run needs: memory, FLOP, days", "recipe", plans, also="FILE.py:FUNCTION"),
    "eval": Command("evaluate a model: retrieval, zero-shot, probes, ...", "opensiglip.apps.evaluate", "command"),
    "compare": Command("compare models, with paired intervals", "opensiglip.apps.evaluate", "compare"),
    "export": Command(
        "export a model to transformers, open_clip, timm or ONNX", "opensiglip.checkpoints.export", "export"
    ),
    "recipes": Command("list the recipes: paper, objectives, tasks", "opensiglip.apps.recipes", "recipes"),
    "data": Group("show, count and convert data", "data command", shown),
    "tokenizer": Group(
        "train a tokenizer",
        "tokenizer command",
        lambda words: {
            "train": Command("train a tokenizer on the texts of a source", "opensiglip.apps.tokenizer", "train")
        },
    ),
    "predict": Command(
        "predict captions, boxes, labels and answers for image files", "opensiglip.apps.predict", "predict"
    ),
    "demo": Command("open a model in a web page on this machine", "opensiglip.apps.demo.demo", "demo"),
    "serve": Command(
        "serve a model over HTTP with OpenAI's embeddings API, and more", "opensiglip.apps.serve.serve", "serve"
    ),
    "search-index": Command(
        "embed a folder of images into an index for search", "opensiglip.apps.search", "search_index"
    ),
    "search": Command("find the images of an index nearest to a text or an image", "opensiglip.apps.search", "search"),
    "annotate": Command(
        "annotate images with boxes from an open-vocabulary detector", "opensiglip.apps.annotate.annotate", "annotate"
    ),
    "completion": Command(
        "print the completion script for bash, zsh or fish", "opensiglip.apps.completion", "script", light=True
    ),
    "study": Command("compare recipes at equal data, steps and seeds", "studies.command", "study"),
    "bench": Group("measure speed and memory against other libraries", "measurement", measured),
}
