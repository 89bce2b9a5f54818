"""From a pattern to the files of a sharded data set."""

import glob
import re
from itertools import product
from pathlib import Path

from opensiglip.data.sources.spec import Spec
from opensiglip.errors import UserError

MAX_SHARDS = 1_000_000
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_shards(spec: Spec, suffix: str) -> list[Path]:
    """The files that a spec names, in order: a file, a folder of files with the suffix, a glob, `{000..999}` or
    `{a,b}`, or a text file that lists one a line (relative to its folder).

    Raises UserError where there is none, or one that is named is missing.
    """
    path = Path(spec.path).expanduser()
    try:
        if path.is_dir():
            files = sorted(path.glob(f"*{suffix}")) or sorted(path.rglob(f"*{suffix}"))
        elif path.suffix.lower() in (".txt", ".list") and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            files = [path.parent / Path(line.strip()).expanduser() for line in lines if line.strip()]
        else:
            files = [Path(file) for pattern in expand(spec) for file in matches(pattern)]
    except (OSError, ValueError) as error:
        raise UserError(f"--data {spec.name} can't be read ({error}); name a file, folder, glob or list.") from None
    if not files:
        raise UserError(f"--data {spec.name}: no file matches; name {suffix} files, a folder of them or a list.")
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"--data {spec.name}: {missing[0]} is missing ({len(missing)} of {len(files)} are).")
    return files


def expand(spec: Spec) -> list[str]:
    """A pattern's braces written out, as a shell does: `{08..10}` is 08, 09, 10. Raises UserError for too many."""
    pieces = BRACES.split(str(Path(spec.path).expanduser()))  # text and what stood in braces, in turn
    choices: list[list[str]] = []
    count = 1
    for at, piece in enumerate(pieces):
        numbers = RANGE.fullmatch(piece) if at % 2 else None
        if numbers is not None:
            first, last = int(numbers[1]), int(numbers[2])
            if not 0 <= last - first < MAX_SHARDS:
                raise UserError(f"--data {spec.name}: {{{piece}}} is no range of up to {MAX_SHARDS:,} shards.")
            choices.append([str(number).zfill(len(numbers[1])) for number in range(first, last + 1)])
        else:
            choices.append(piece.split(",") if at % 2 else [piece])
        count *= len(choices[-1])
        if count > MAX_SHARDS:
            raise UserError(f"--data {spec.name} names over {MAX_SHARDS:,} shards; name fewer.")
    return ["".join(parts) for parts in product(*choices)]


def matches(pattern: str) -> list[str]:
    """A path as it is, a glob's files in the order of their names."""
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return [pattern]
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - pathlib's has no absolute patterns
