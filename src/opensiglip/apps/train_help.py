"""Help on `train` that fits one screen: the flags that most runs need, then all others by group; and all explained."""

import inspect
import shutil
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import docstring_parser

COMMON = ("data", "out", "init", "size", "steps", "batch_size", "lr", "accumulate", "checkpointing", "resume")
HELP_ALL = "--help-all"
HELP = {"-h", "--help", HELP_ALL}
RECIPE = "recipe"  # the group of the recipe's own keywords
GROUPS = {
    "data": (
        "data",
        "data_weights",
        "example_weights",
        "box_format",
        "languages",
        "language_weights",
        "tokenizer",
        "vocabulary",
        "held_out",
    ),
    "start": (
        "init",
        "vision",
        "text",
        "freeze",
        "tower_lr",
        "lora",
        "head_ema",
        "features",
        "features_gb",
        "continue_from",
        "resume",
        "changed",
        "config",
        "trust",
    ),
    "schedule": (
        "steps",
        "epochs",
        "batch_size",
        "lr",
        "warmup",
        "weight_decay",
        "betas",
        "optimizer",
        "clip_norm",
        "seed",
    ),
    "tokens": ("keep_tokens", "token_mask", "full_from"),
    "curation": (
        "curate",
        "reference",
        "filter",
        "chunks",
        "score_resolution",
        "score_precision",
        "distil",
        "distil_weight",
        "teacher",
    ),
    "machine": (
        "dry_run",
        "ranks",
        "shard",
        "accumulate",
        "checkpointing",
        "memory_check",
        "precision",
        "compile",
        "workers",
        "cache_gb",
    ),
    "logging": (
        "out",
        "keep",
        "keep_last",
        "keep_best",
        "patience",
        "save_every",
        "log_every",
        "eval_every",
        "set_aside",
        "trackers",
    ),
}
NARROW, WIDE = 60, 110  # columns of the text, whatever the terminal's
KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def help_text(program: str, signature: inspect.Signature, doc: str, everything: bool) -> str:
    """The short help, or with `everything` each flag's line in its group."""
    parsed = docstring_parser.parse(doc)
    lines = {one.arg_name: " ".join((one.description or "").split()) for one in parsed.params}
    columns = min(WIDE, max(NARROW, shutil.get_terminal_size().columns))
    said = [f"{program} [flags]", "", *textwrap.wrap(parsed.short_description or "", columns), ""]
    groups = grouped(signature)
    if everything:
        for group, names in groups.items():
            said += [f"{group}:", *_rows([signature.parameters[name] for name in names], lines, columns), ""]
        return "\n".join(said).rstrip()
    common = [signature.parameters[name] for name in COMMON if name in signature.parameters]
    said += ["most used:", *_rows(common, {name: _first(line) for name, line in lines.items()}, columns), ""]
    for group, names in groups.items():
        others = " ".join(flag(name) for name in names if name not in COMMON)
        said += textwrap.wrap(f"{group}: {others}", columns, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([*said, "", f"`{program} --help-all` explains each flag."])


def grouped(signature: inspect.Signature) -> dict[str, list[str]]:
    """The parameters by group; those that are in none are the recipe's."""
    shared = {name for names in GROUPS.values() for name in names}
    groups = {group: [name for name in names if name in signature.parameters] for group, names in GROUPS.items()}
    return groups | {RECIPE: [name for name in signature.parameters if name not in shared]}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _rows(parameters: list[inspect.Parameter], lines: dict[str, str], columns: int) -> Iterator[str]:
    heads = [f"  {_form(one)}" for one in parameters]
    width = min(34, max((len(head) for head in heads), default=0)) + 2
    for one, head in zip(parameters, heads, strict=True):
        text = textwrap.wrap(f"{lines.get(one.name, '')}{_default(one)}", columns - width) or [""]
        if len(head) + 2 > width:
            yield head
            head = ""
        yield f"{head:<{width}}{text[0]}".rstrip()
        yield from (" " * width + line for line in text[1:])


def _form(one: inspect.Parameter) -> str:
    """A flag and what follows it."""
    if one.default is True:
        return f"--no-{flag(one.name)[2:]}"
    kind = _kind(one.annotation)
    return f"{flag(one.name)} {kind}" if kind else flag(one.name)


def _kind(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return _kind(next(one for one in inner if one is not type(None)))
    if origin is tuple:
        return f"{_kind(inner[0])} ..."
    return "" if hint is bool else KINDS.get(hint, "TEXT")


def _default(one: inspect.Parameter) -> str:
    if one.default is inspect.Parameter.empty:
        return " (required)"
    if one.default is None or isinstance(one.default, bool) or one.default == ():
        return ""
    value = " ".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
    return f" (default: {value})"


def _first(text: str) -> str:
    """A description up to its first semicolon or full stop."""
    return text.partition(";")[0].partition(". ")[0].rstrip(".")
