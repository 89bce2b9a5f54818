"""CSV and TSV files of paths and texts, as open_clip's `filepath` and `title`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.columns import find_columns
from opensiglip.data.sources.metadata import SPLITS
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.table import Table, choose_rows
from opensiglip.errors import UserError

MAX_HEADER = 1 << 20  # bytes


class Csv(Table):
    """Rows of a file with a header. A tab in the header makes it tab-separated, whatever its name ends in.

    Paths are relative to the file's folder, or to `?root=`, and stay below it. Links are not fetched.
    """

    kind = "csv"

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Raises UserError where the file can't be read or its columns are not there."""
        file = Path(spec.path).expanduser()
        file = file / "metadata.csv" if file.is_dir() else file
        self.table, broken = read_csv(file)
        columns = find_columns(self.table.column_names, spec)
        names = [name.decode(errors="replace") for name in self.table[columns.image].to_pylist()]
        splits = None
        if "split" in self.table.column_names:
            splits = [name.decode(errors="replace") or None for name in self.table["split"].to_pylist()]
            if unknown := set(splits) - {None, *SPLITS}:
                raise UserError(f"{file}: split {sorted(map(str, unknown))[0]!r} is not train, val or test.")
        super().__init__(spec, split, languages, choose_rows(names, splits, split), columns, file.parent)
        if broken:
            self.skipped["line has another number of columns than the header"] += broken

    def values(self, row: int) -> dict[str, Any]:
        return {name: self._text(name, row) for name in self.named.names}

    def cell(self, row: int) -> str:
        return self._text(self.named.image, row) or ""

    def key(self, row: int) -> str:
        return self.cell(row)

    def group(self, index: int) -> str:
        try:
            return f"{self.root}/{self.cell(self.rows.row(index))}"
        except BrokenExample:
            return super().group(index)

    def _text(self, column: str, row: int) -> str | None:
        try:
            return self.table[column][row].as_py().decode() or None
        except UnicodeDecodeError:
            raise BrokenExample("text is not UTF-8") from None


def read_csv(file: Path, wanted: Sequence[str] = (), *, linked: bool = False) -> tuple[pa.Table, int]:
    """A table of bytes, since any cell may be anything; and how many lines don't fit the header. Raises UserError.

    `wanted`: the columns to keep, those of them that are there; by default all. `linked`: it may be a list as
    Conceptual Captions has them, without a header or quotes: columns `url` and `caption`.
    """
    broken = []

    def skip(line: Any) -> str:
        broken.append(line.number)
        return "skip"

    try:
        with file.open("rb") as opened:
            header = opened.readline(MAX_HEADER).decode("utf-8-sig")
        delimiter = "\t" if "\t" in header else ","
        bare = names_of_links(header.rstrip("\r\n").split(delimiter)) if linked else None
        quotes = {"newlines_in_values": True} if bare is None else {"quote_char": False}
        parse = pa.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=skip, **quotes)
        read = pa.csv.ReadOptions(use_threads=False, column_names=bare)
        names = pa.csv.open_csv(file, parse_options=parse, read_options=read).schema.names
        broken.clear()
        convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.large_binary()),
            strings_can_be_null=False,
            include_columns=[name for name in names if not wanted or name in wanted],
        )
        table = pa.csv.read_csv(file, parse_options=parse, read_options=read, convert_options=convert)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{file} can't be read ({str(error).splitlines()[0]}); give a CSV with a header.") from None
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{file} has two columns {twice[0]!r}; rename one.")
    return table.combine_chunks(), len(broken)


def names_of_links(cells: Sequence[str]) -> list[str] | None:
    """Names for the columns of a table whose first line is no header, but has one link; None where it is a header."""
    links = [cell.strip().startswith(("http://", "https://")) for cell in cells]
    if sum(links) != 1 or len(cells) > 2:
        return None
    return ["url" if is_link else "caption" for is_link in links]
