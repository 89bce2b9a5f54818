"""`opensiglip train RECIPE`: the flags are TrainConfig's fields and the recipe's keywords, known before torch is."""

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import docstring_parser
import tyro

from opensiglip import progress, user_file
from opensiglip.apps import quiet, signature
from opensiglip.bounds import check_bounds
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.size_schedule import SCHEDULED, schedules
from opensiglip.errors import UserError
from opensiglip.recipes import RECIPES, TRAINED, find_recipe
from opensiglip.training.config import TrainConfig

OWN = (  # flags of the command alone
    inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, annotation=Path | None, default=None),
    inspect.Parameter("ranks", inspect.Parameter.KEYWORD_ONLY, annotation=int, default=1),
    inspect.Parameter("dry_run", inspect.Parameter.KEYWORD_ONLY, annotation=bool, default=False),
)
EXAMPLES = {"resolution": "112@0,224@0.8", "length": "16@0,64@0.8"}
OWN_DOC = """
        config: config.json of a run of this recipe, or its folder; flags override its arguments.
        ranks: number of processes to start on this machine, one per GPU; not needed with torchrun or srun.
        dry_run: read the data, time a step of each stage, and print shapes, memory, time and files; write nothing.
"""


@dataclass(frozen=True)
class Train:
    """`train` with one recipe."""

    recipe: str
    help: str
    own: tuple[inspect.Signature, str]  # the recipe's signature and docstring
    words: tuple[str, ...]  # of the command line, from the recipe on

    def flags(self, words: Sequence[str]) -> tuple[inspect.Signature, str]:
        """TrainConfig's and the recipe's, with defaults from the run that --continue-from names. Raises UserError."""
        defaults, run = configured(self.recipe, words), continued(words)
        several = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]  # --data A --data B
        shared = signature.of_fields(TrainConfig, data=several)
        known = [*shared, *keywords(self.own[0])]
        if unknown := defaults.keys() - {one.name for one in known}:
            raise UserError(f"--config: train {self.recipe} has no {min(unknown)!r} in this version; remove it there.")
        check_kinds(f"--config {value_of('--config', words)}", known, defaults)
        check_kinds(f"--continue-from {value_of('--continue-from', words)}", known, run)
        defaults = run | TRAINED.get(self.recipe, {}) | defaults  # of a run's, those that this recipe has, too
        parameters = [*(one.replace(default=defaults.get(one.name, one.default)) for one in known), *OWN]
        return inspect.Signature(parameters), joined(self.own[1], (TrainConfig.__doc__ or "") + OWN_DOC)

    def call(self, flags: Mapping[str, Any]) -> None:
        """Check the values, train, print what came of it. Raises UserError."""
        ranks, dry = flags["ranks"], flags["dry_run"]
        flags = {name: value for name, value in flags.items() if name not in {one.name for one in OWN}}
        check_bounds(signature.like(self.own[0]), numbers(flags))
        TrainConfig.part(dict(flags))  # for its checks: a wrong value is answered before torch is imported
        started = os.environ.get("WORLD_SIZE")
        if ranks < 1 or (started is not None and ranks not in (1, int(started))):
            why = "give at least 1" if ranks < 1 else f"a launcher has started {started} of them; leave it out"
            raise UserError(f"--ranks {ranks}: {why}.")
        if dry and ranks > 1:
            raise UserError("--dry-run runs in one process; leave --ranks out (`opensiglip plan` counts with ranks).")
        if ranks > 1 and started is None:
            from opensiglip.apps.ranks import launch

            spoken = ["--quiet"] * progress.quiet + ["--verbose"] * quiet.verbose
            sys.exit(launch(ranks, ["train", *self.words, *spoken]))
        from opensiglip.training.dry_run import dry_run
        from opensiglip.training.run import train

        quiet.quiet_libraries()
        if dry:
            print(dry_run(self.recipe, **flags))
            return
        summary = train(self.recipe, **flags)
        if not summary:
            return  # another rank has it
        print()
        for name, figure in summary["figures"].items():
            print(f"{name:<48} {figure}")
        if summary["skipped_steps"]:
            print(f"{'skipped steps':<48} {summary['skipped_steps']} of {summary['steps']}")
        best = summary.get("best", {})
        if best.get("step") is not None:
            print(f"{'best ' + best['metric']:<48} {best['value']:.3f} after {best['step']} steps")
        if "advice" in summary:
            print(f"\n{summary['advice']}")
        run = RunFolder(Path(summary["folder"]))
        print(f"\nreport      {run.report}\nmodel       {run.model}\nmetrics     {run.metrics}")
        print(f"checkpoint  {run.checkpoints}\nsummary     {run.summary}\n\nnext, for example")
        for words, about in summary["next"].items():
            print(f"  {words}    # {about}")


def recipes(words: Sequence[str]) -> dict[str, Train]:
    """`train` with each recipe, and with FILE.py:FUNCTION where that is the first word. Raises UserError."""
    return {
        name: Train(name, own[1].partition("\n")[0], own, tuple(words)) for name, own in read_recipes(words).items()
    }


def read_recipes(words: Sequence[str]) -> dict[str, tuple[inspect.Signature, str]]:
    """Signature and docstring of each recipe, and of the FILE.py:FUNCTION that is the first word. Raises UserError."""
    read = {name: (inspect.signature(own), inspect.getdoc(own) or "") for name, own in RECIPES.items()}
    if words and ".py:" in words[0]:
        read[words[0]] = of_file(words[0])
    return read


def of_file(recipe: str) -> tuple[inspect.Signature, str]:
    """Signature and docstring of FILE.py:FUNCTION. Raises UserError."""
    file, _, name = recipe.rpartition(":")
    user_file.check("recipe", file)
    try:
        return signature.read_plain(Path(file), name)
    except signature.NotPlainError:
        function = find_recipe(recipe)
        return inspect.signature(function), inspect.getdoc(function) or ""


def keywords(one: inspect.Signature) -> list[inspect.Parameter]:
    """The parameters that can be given by name."""
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in one.parameters.values() if p.kind in by_name]
    return [p.replace(annotation=or_text(p.annotation)) if p.name in SCHEDULED else p for p in known]


def or_text(kind: Any) -> Any:
    """A keyword's type, or a text that says it for each part of training."""
    return (get_args(kind)[0] if get_origin(kind) is Annotated else kind) | str


def numbers(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags, with the sizes of each schedule in its place. Raises UserError."""
    return {**flags, **{name: one.sizes for name, one in schedules(flags).items()}}


def joined(recipe: str, *shared: str) -> str:
    """One docstring: what the recipe is, and the arguments of all."""
    own, *others = (docstring_parser.parse(text) for text in (recipe, *shared))
    arguments = [argument for one in (*others, own) for argument in one.params]
    for one in own.params:
        if one.arg_name in SCHEDULED:
            one.description = f"{(one.description or '').rstrip('.')}; or a schedule such as {EXAMPLES[one.arg_name]}."
    # On one line each: a second one, not indented, would end the section.
    lines = [f"    {p.arg_name}: {' '.join((p.description or '').split())}" for p in arguments]
    return "\n".join([own.short_description or "", "", "Args:", *lines])


def continued(words: Sequence[str]) -> dict[str, Any]:
    """The arguments of the run that --continue-from names, which are the defaults here. Raises UserError."""
    run = value_of("--continue-from", words)
    if run is None:
        return {}
    from opensiglip.training.record import inherited

    return inherited(run, named(words), trust="--trust" in words)


def configured(recipe: str, words: Sequence[str]) -> dict[str, Any]:
    """The arguments in the file that --config names, which are the defaults here. Raises UserError."""
    file = value_of("--config", words)
    if file is None:
        return {}
    from opensiglip.training.record import of_config

    return of_config(Path(file), recipe, named(words), trust="--trust" in words)


def named(words: Sequence[str]) -> set[str]:
    """The arguments that are given, for which no file is asked: what it has for --data would be added."""
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    return {flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags}


def check_kinds(source: str, known: Sequence[inspect.Parameter], values: Mapping[str, Any]) -> None:
    """Raises UserError on the first of a file's values that its keyword does not take: nothing has parsed them."""
    for one in known:
        if one.name in values and not signature.takes(one.annotation, values[one.name]):
            flag = f"--{one.name.replace('_', '-')}"
            raise UserError(
                f"{source}: that run's {flag} is {str(values[one.name])[:60]}, which it can't be; give {flag} yourself."
            )


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """What follows a flag among words that are not parsed yet."""
    for word, following in zip(words, [*words[1:], None], strict=False):
        name, joint, value = word.partition("=")
        if name.replace("_", "-") == flag:
            return value if joint else following
    return None
