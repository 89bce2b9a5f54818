"""The command line: flags are the keywords of the functions behind it; bad input is one sentence and exit code 2."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Union

import tyro
from tyro._errors import ParseErrorEvent, on_parse_error

from opensiglip import __version__, progress
from opensiglip.apps import completion, quiet
from opensiglip.apps.commands import COMMANDS, Group, Runnable
from opensiglip.apps.said import PROGRAM, say
from opensiglip.apps.sentence import check_switches, rejected_flags, rejected_word
from opensiglip.apps.signature import like
from opensiglip.apps.train import Train
from opensiglip.apps.train_help import HELP, HELP_ALL, help_text
from opensiglip.disk import FULL, refusal
from opensiglip.errors import Stopped, UserError

EVERYWHERE = {"--quiet", "--verbose"}  # flags that every command takes
ABOUT = """Open pretraining of vision-language encoders.

Every command takes --quiet (no progress) and --verbose (the warnings of libraries, too)."""
TOP = Group(ABOUT, "command", lambda words: COMMANDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console of another encoding, file names that are no UTF-8
            stream.reconfigure(errors="backslashreplace")
    progress.quiet = "--quiet" in words
    quiet.verbose = "--verbose" in words
    try:
        run([word for word in words if word not in EVERYWHERE])
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        drop_output()
        return 141  # as a shell has it: 128 + SIGPIPE
    except UserError as error:
        say(str(error), 2)
        return 2
    except Stopped as stop:
        say(str(stop), stop.code)
        return stop.code
    except OSError as error:
        if refusal(error) not in FULL:
            raise
        drop_output()
        say(f"{error.filename or 'the output'} can't be written ({error.strerror}); make room.", 2)
        return 2
    except KeyboardInterrupt as stop:
        say(str(stop) or "stopped.", 130)
        return 130
    return 0


def drop_output() -> None:
    """Python must not flush what is left when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(words: list[str]) -> None:
    """Find the command, read its flags, call it. Raises UserError."""
    if words == ["--version"]:
        print(__version__)
        return
    if words[:1] == ["complete"]:  # what the scripts of `completion` ask
        for name, about in completion.candidates(words[2:], find):
            print(name, about, sep="\t" if about else "")
        return
    node, path = find(words)
    program = " ".join([PROGRAM, *path])
    rest = words[len(path) :]
    if isinstance(node, Train) and (asked := HELP.intersection(rest)):
        print(help_text(program, *node.flags([]), everything=HELP_ALL in asked))
        return
    words = ["--help" if word == HELP_ALL else word for word in words]
    flags = like(*node.flags(rest)) if not isinstance(node, Group) else None

    if flags is not None:
        check_switches(inspect.signature(flags), rest, EVERYWHERE)

    def reject(event: ParseErrorEvent) -> None:
        if isinstance(node, Group):
            raise UserError(rejected_word(rest, node.kind, list(node.members(rest)), node.also))
        assert flags is not None
        raise UserError(rejected_flags(event, program, inspect.signature(flags), rest))

    with on_parse_error(reject):
        commands = subcommands(TOP, words, flags)
        try:
            values = tyro.cli(commands, prog=PROGRAM, description=TOP.help, args=words or ["--help"], config=())
        except SystemExit as stop:
            if stop.code:
                raise
            return  # --help
    assert not isinstance(node, Group)  # tyro has rejected the words
    node.call(values)


def find(words: Sequence[str]) -> tuple[Group | Runnable, list[str]]:
    """The command that the words begin with, or the group after which they name none; and its name."""
    node: Group | Runnable = TOP
    path: list[str] = []
    while isinstance(node, Group):
        rest = words[len(path) :]
        following = node.members(rest).get(rest[0]) if rest else None
        if following is None:
            break
        node = following
        path.append(rest[0])
    return node, path


def subcommands(group: Group, words: Sequence[str], flags: Callable[..., Any] | None) -> Any:
    """tyro's type for a group: only the command that the words name has its flags, the others their line of help."""
    asked = words[0] if words else None
    rows: list[Any] = []
    for name, node in group.members(words).items():
        command: Any = like(inspect.Signature())
        if name == asked:
            command = subcommands(node, words[1:], flags) if isinstance(node, Group) else flags
        entry = tyro.conf.subcommand(name, description=node.help, constructor_factory=partial(_same, command))
        rows.append(Annotated[Any, entry])
    return Union[*rows, Annotated[None, tyro.conf.Suppress]]  # a union needs two


def _same(command: Any) -> Any:
    return command


if __name__ == "__main__":
    sys.exit(main())
