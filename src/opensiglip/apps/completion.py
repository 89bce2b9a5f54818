"""Completion in a shell: three short scripts that ask `opensiglip complete` for what may follow."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro

SHELLS = {
    "bash": """\
_opensiglip() {
    local IFS=$'\\n'
    COMPREPLY=($(opensiglip complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
}
complete -o default -F _opensiglip opensiglip
""",
    "zsh": """\
#compdef opensiglip
_opensiglip() {
    local -a found
    found=("${(@f)$(opensiglip complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=("${(@)found//:/\\\\:}")
    found=("${(@)found/$'\\t'/:}")
    if [[ -n "${found[1]}" ]]; then _describe opensiglip found; else _files; fi
}
compdef _opensiglip opensiglip
""",
    "fish": """\
function __opensiglip
    set -l before (commandline -opc)[2..]
    set -l found (opensiglip complete -- $before (commandline -ct) 2>/dev/null)
    if set -q found[1]
        string join -- \\n $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c opensiglip -f -a '(__opensiglip)'
""",
}
Shell = Literal["bash", "zsh", "fish"]


def candidates(words: Sequence[str], find: Callable[[Sequence[str]], tuple[Any, list[str]]]) -> list[tuple[str, str]]:
    """What the last of `words` may become, each with a few words on it; `find` is the command line's.

    Commands and recipes of a group; else flags, and after a flag the values that it accepts, where they are few.
    """
    *before, last = words or [""]
    node, path = find(before)
    rest = before[len(path) :]
    if hasattr(node, "members"):
        found = {} if rest else {name: member.help for name, member in node.members([]).items()}
        return _starting(found, last)
    signature, _ = node.flags(rest)
    parameters = {f"--{name.replace('_', '-')}": one for name, one in signature.parameters.items()}
    if rest and rest[-1] in parameters and not last.startswith("-"):
        return _starting(dict.fromkeys(_choices(parameters[rest[-1]].annotation), ""), last)
    flags = {}
    for name, one in parameters.items():
        flags[f"--no-{name[2:]}" if one.default is True else name] = ""
    return _starting(flags, last) if last.startswith("-") else []


def _starting(found: Mapping[str, str], last: str) -> list[tuple[str, str]]:
    return [(name, about) for name, about in found.items() if name.startswith(last)]


def _choices(hint: Any) -> list[str]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [str(value) for value in inner]
    if origin is Annotated or origin is Union or type(hint).__name__ == "UnionType":
        return [value for one in inner for value in _choices(one)]
    return []


def script(shell: Annotated[Shell, tyro.conf.Positional]) -> None:
    """Print the completion of commands, recipes and flags: `eval "$(opensiglip completion bash)"`.

    Args:
        shell: bash, zsh or fish (`opensiglip completion fish | source`).
    """
    print(SHELLS[shell], end="")
