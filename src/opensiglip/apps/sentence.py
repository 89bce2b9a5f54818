"""What tyro rejects, as one sentence: it names the flag, the command or the value, and the nearest that there is."""

import inspect
import types
from collections.abc import Sequence, Set
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro import _errors as rejected  # private to tyro: the one place that has its errors as objects
from tyro.conf import UseAppendAction

from opensiglip.errors import UserError

NAMED = {int: "a whole number", float: "a number", bool: "True or False", str: "text", Path: "a path"}


def rejected_flags(
    event: rejected.ParseErrorEvent, program: str, signature: inspect.Signature, words: Sequence[str]
) -> str:
    """The sentence on what `words`, given to a command of that signature, have wrong."""
    unknown = [word for word in getattr(event, "tokens", getattr(event, "unrecognized_tokens", [])) if is_flag(word)]
    if unknown:
        name = unknown[0].partition("=")[0].lstrip("-")
        flags = [flag.replace("_", "-") for flag in signature.parameters]
        close = nearest(name.replace("_", "-"), flags, prefix="--")
        return f"no such flag: --{name}{close}; `{program} --help` lists the flags."
    match event:
        case rejected.UnrecognizedArgs(tokens=[word, *_]):
            fact = f"unexpected word: {word!r}{repeatable(word, signature, words)}"
        case rejected.MissingArgs(missing_arguments=missing):
            fact = "; ".join(f"{named(one.arg)} is missing{about(one.arg)}" for one in missing)
        case rejected.BadValue(argument=argument):
            fact = f"{named(argument)} needs {wanted(argument.field.type_stripped)}"
        case rejected.InvalidChoice(argument=argument, value=value):
            fact = f"{named(argument)} {value!r} is unknown; give {wanted(argument.field.type_stripped)}"
        case rejected.InstantiationFailure(argument=argument) if argument is not None:
            value = " ".join([named(argument), *given(argument.lowered.name_or_flags, words)])
            fact = f"{value} can't be read; give {wanted(argument.field.type_stripped)}"
        case _:
            fact = f"the flags can't be read ({type(event).__name__})"
    return f"{fact}; `{program} --help` lists the flags."


def check_switches(signature: inspect.Signature, words: Sequence[str], everywhere: Set[str]) -> None:
    """Raises UserError where a switch is given a value, as in --json=yes, which tyro would read as a word.

    `everywhere`: switches of every command.
    """
    own = {f"--{name.replace('_', '-')}" for name, one in signature.parameters.items() if is_switch(one.annotation)}
    both = own | {f"--no-{name[2:]}" for name in own}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and (name := name.replace("_", "-")) in both | everywhere:
            plain = name if name in own | everywhere else f"--{name[5:]}"
            other = f", {plain.replace('--', '--no-', 1)} turns it off" if plain in own else ""
            raise UserError(f"{name} takes no value, and {value!r} is given: {plain} turns it on{other}.")


def is_switch(hint: Any) -> bool:
    return hint is bool or (get_origin(hint) is Annotated and is_switch(get_args(hint)[0]))


def repeatable(word: str, signature: inspect.Signature, words: Sequence[str]) -> str:
    """That a flag is given once for each value, as a clause, where `word` follows the value of one that may be."""
    before = list(words[: words.index(word)]) if word in words else []
    flag = next((one.partition("=")[0] for one in reversed(before) if is_flag(one)), "")
    known = signature.parameters.get(flag.lstrip("-").replace("-", "_"))
    return f"; give {flag} again before each value" if known is not None and is_repeated(known.annotation) else ""


def is_repeated(hint: Any) -> bool:
    return get_origin(hint) is Annotated and UseAppendAction in get_args(hint)[1:]


def rejected_word(words: Sequence[str], kind: str, names: Sequence[str], also: str) -> str:
    """The sentence on words that begin with no command of a group."""
    every = [*names, also] if also else names
    if not words or is_flag(words[0]):
        return f"name a {kind} first: {listed(every)}."
    there = f"there {'is' if len(every) == 1 else 'are'} {listed(every, 'and')}"
    return f"no such {kind}: {words[0]!r}{nearest(words[0], names)}; {there}."


def nearest(word: str, names: Sequence[str], prefix: str = "") -> str:
    """The name that a mistyped word is closest to, as a clause; empty if none is close."""
    found = get_close_matches(word, names, n=1, cutoff=0.6)
    return f", the nearest is {prefix}{found[0]}" if found else ""


def is_flag(word: str) -> bool:
    return word.startswith("-") and len(word.lstrip("-")) > 0 and not word.lstrip("-")[0].isdigit()


def named(argument: Any) -> str:
    """--flag, or the name of a positional in capitals as in the usage."""
    return argument.display_name().upper() if argument.is_positional() else argument.lowered.name_or_flags[-1]


def about(argument: Any) -> str:
    """What an argument is, as a clause: its description up to the first semicolon or full stop."""
    text = str(argument.field.helptext or "")
    first = text.partition(";")[0].partition(". ")[0].rstrip(".")
    return f": {first}" if first else ""


def given(names: Sequence[str], words: Sequence[str]) -> list[str]:
    """The values that follow a flag."""
    place = next((n for n, word in enumerate(words) if word.partition("=")[0].replace("_", "-") in names), len(words))
    first = [words[place].partition("=")[2]] if place < len(words) and "=" in words[place] else []
    return [*first, *takewhile(lambda word: not is_flag(word), words[place + 1 :])]


def wanted(hint: Any) -> str:
    """The values that a type accepts, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return wanted(inner[0])
    if origin is Literal:
        return listed([str(choice) for choice in inner])
    if origin in (Union, types.UnionType):
        return " or ".join(wanted(one) for one in inner if one is not type(None))
    if inner:
        return f"{wanted(inner[0])}, or several"
    return NAMED.get(hint, "a value")


def listed(names: Sequence[str], last: str = "or") -> str:
    """a, b or c."""
    return f" {last} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
