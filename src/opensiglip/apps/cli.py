"""The command line: flags are the keywords of the functions behind it; bad input is one sentence and exit code 2."""

import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import docstring_parser
import tyro

from opensiglip import __version__
from opensiglip.errors import UserError

USAGE = """usage: opensiglip COMMAND ...

  train RECIPE --data SOURCE --out RUN    train a recipe; `opensiglip train RECIPE --help` lists its flags
  eval MODEL --data SOURCE                judge a model: retrieval, zero-shot, probes, ...; `--tasks`, `--out`
  compare MODEL MODEL ...                 models side by side, with paired intervals; `--data`, `--out`
  export SOURCE --out DIR                 a run, or weights of another make, as a transformers folder or as ONNX
  recipes                                 the table of recipes: paper, objectives, tasks
  data show SOURCE [--out sheet.png]      what is in a source, and a contact sheet with boxes drawn
  predict MODEL IMAGE...                  captions, boxes, labels of image files: --caption, --locate PHRASE, ...
  demo MODEL                              the same in a web page, on this machine
  annotate SOURCE --out DIR               boxes for your own photos, by an open-vocabulary detector
  study NAME --out DIR                    recipes compared at equal data, steps and seeds: objectives, localization, ...
  bench WHAT                              the measurements behind claims on speed, each beside its peers
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(words)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # once, not once a rank
            print(f"opensiglip: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nopensiglip: stopped; `--resume` goes on from the last checkpoint.", file=sys.stderr)
        return 130


def run(words: list[str]) -> int:
    """Find the command and call its function."""
    match words:
        case [] | ["-h" | "--help"]:
            print(USAGE)
        case ["--version"]:
            print(__version__)
        case ["export", *rest]:
            from opensiglip.checkpoints.export import export

            call(export, rest, "opensiglip export")
        case ["recipes", *rest]:
            call(recipes, rest, "opensiglip recipes")
        case ["data", "show", *rest]:
            call(data_show, rest, "opensiglip data show")
        case ["eval", *rest]:
            from opensiglip.apps.evaluate import command

            call(command, rest, "opensiglip eval")
        case ["compare", *rest]:
            from opensiglip.apps.evaluate import compare

            call(compare, rest, "opensiglip compare")
        case ["train", recipe, *rest] if not recipe.startswith("-"):
            _train(recipe, rest)
        case ["train", *_]:
            from opensiglip.recipes import RECIPES

            print(
                "usage: opensiglip train RECIPE --data SOURCE --out RUN\n\n"
                f"RECIPE: {', '.join(RECIPES)}, or FILE.py:FUNCTION"
            )
            return 0 if "--help" in words or "-h" in words else 2
        case ["predict" | "demo" | "annotate" as name, *rest]:
            home = {"predict": "predict", "demo": "demo.demo", "annotate": "annotate.annotate"}[name]
            call(getattr(import_module(f"opensiglip.apps.{home}"), name), rest, f"opensiglip {name}")
        case ["study", *rest]:
            call(beside_the_package("studies.command").study, rest, "opensiglip study")
        case ["bench", *rest]:
            measure = beside_the_package("benchmarks").find(next(iter(rest), ""))
            call(measure, rest[1:], f"opensiglip bench {rest[0]}")
        case ["data", *_]:
            raise UserError("`opensiglip data` has one command: show SOURCE.")
        case _:
            raise UserError(f"no such command: {words[0]!r}; `opensiglip --help` lists them.")
    return 0


def beside_the_package(module: str) -> Any:
    """A module of `benchmarks/` or `studies/`, which a clone has and a wheel has not. Raises UserError elsewhere."""
    clone = Path(__file__).parents[3]
    if not (clone / module.partition(".")[0] / "__init__.py").is_file():
        raise UserError(
            f"{module.partition('.')[0]} are not part of the installed package; clone the repository and run "
            "`make setup` there."
        )
    if str(clone) not in sys.path:
        sys.path.insert(0, str(clone))
    return import_module(module)


def recipes() -> None:
    """The table of recipes: paper, objectives, tasks."""
    from opensiglip.recipes import RECIPES

    rows = [("recipe", "paper", "objectives", "tasks", "what")]
    for name, function in RECIPES.items():
        recipe = function(size="tiny")
        what, _, paper = (function.__doc__ or "").strip().splitlines()[0].partition("(")
        terms = " + ".join(objective.name for objective in recipe.objectives)
        tasks = " ".join(recipe.tasks) or "-"
        rows.append((name, paper.rstrip(")."), terms, tasks, what.partition(":")[2].strip().rstrip(".")))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())


def data_show(
    source: Annotated[str, tyro.conf.Positional],
    out: Path | None = None,
    split: str = "train",
    languages: str | None = None,
) -> None:
    """What is in a source: counts, languages, lengths; and a contact sheet with boxes drawn.

    Args:
        source: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl.
        out: where to write the contact sheet, a PNG.
        split: train, val or test (scenes also have val_drawings).
        languages: all, or codes such as en or de,fr; by default all the source has.
    """
    from opensiglip.reports.contact_sheet import show

    print(show(source, out, split, None if languages is None else languages.split(",")))


def _train(recipe: str, rest: list[str]) -> None:
    from transformers.utils import logging

    from opensiglip.training.record import find, inherited
    from opensiglip.training.run import train

    logging.set_verbosity_error()  # it warns of its own default config's token ids whenever a model is saved
    logging.disable_progress_bar()
    function = find(recipe)
    types = {"data": Annotated[tuple[str, ...], tyro.conf.UseAppendAction]}
    defaults = inherited(flag(rest, "--continue-from"))
    if flag(rest, "--data") is not None:  # else what is given would be added to what the other run had
        defaults.pop("data", None)
    merged = merge(train, function, types, defaults)
    summary = call(lambda **flags: train(recipe, **flags), rest, f"opensiglip train {recipe}", like=merged)
    if summary:
        out = Path(summary["folder"])
        print()
        for name, figure in summary["figures"].items():
            print(f"{name:<48} {figure}")
        print(f"\nreport      {out / 'report.html'}\nmodel       {out / 'model'}\nmetrics     {out / 'metrics.jsonl'}")
        print(f"checkpoint  {out / 'checkpoints'}\nsummary     {out / 'summary.json'}")


def flag(words: Sequence[str], name: str) -> str | None:
    """What follows a flag among words that are not parsed yet."""
    for word, following in zip(words, [*words[1:], None], strict=False):
        given, joined, value = word.partition("=")
        if given.replace("_", "-") == name:
            return value if joined else following
    return None


def merge(
    outer: Callable[..., Any], inner: Callable[..., Any], types: dict[str, Any], defaults: dict[str, Any]
) -> tuple[inspect.Signature, str]:
    """One signature and docstring of `outer`'s keywords and `inner`'s: what the flags are made from."""
    parameters = [
        parameter.replace(
            annotation=types.get(name, parameter.annotation), default=defaults.get(name, parameter.default)
        )
        for function in (outer, inner)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    inside, outside = (docstring_parser.parse(f.__doc__ or "") for f in (inner, outer))
    text = [inside.short_description or "", "", "Args:"]
    # On one line each: a second one, not indented, would end the section.
    text += [f"    {p.arg_name}: {' '.join((p.description or '').split())}" for p in [*outside.params, *inside.params]]
    return inspect.Signature(parameters), "\n".join(text)


def call(
    function: Callable[..., Any], words: list[str], program: str, like: tuple[inspect.Signature, str] | None = None
) -> Any:
    """Call a function with flags made from its signature (or `like`). Raises UserError on flags it does not have."""

    def take(**flags: Any) -> dict[str, Any]:
        return flags

    signature, text = like or (inspect.signature(function), function.__doc__ or "")
    take.__signature__ = signature  # type: ignore[attr-defined]
    take.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    take.__doc__ = text
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags = tyro.cli(take, prog=program, args=words, config=())
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UserError(f"{one_sentence(said.getvalue())} `{program} --help` lists the flags.") from None
    return function(**flags)


def one_sentence(boxed: str) -> str:
    """tyro's framed message as one line, without the frame's title and what follows the fact."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    plain = re.sub(r"\A[^\n]*\n\s*-{5,}\s*\n", "", plain)  # where no frame can be drawn: the title and its rule
    lines = [line.strip("│ ").strip() for line in plain.splitlines() if not line.lstrip().startswith(("╭", "╰", "├"))]
    fact = re.split(r"(?:Argument helptext|For full helptext|Got errors|───|-{5,})", " ".join(lines))[0]
    return re.sub(r"\s+", " ", fact).strip().rstrip(".:") + "."


if __name__ == "__main__":
    sys.exit(main())
