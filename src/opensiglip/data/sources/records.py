"""Rows of annotation files in an Arrow table: large files are parsed once, then mapped from the user's cache.

So a run over millions of boxes starts at once, and its processes share one copy that is not on Python's heap.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from opensiglip.data.sources.box_layout import BoxLayout
from opensiglip.data.sources.columns import Columns
from opensiglip.data.sources.disk_cache import cache_folder
from opensiglip.data.sources.files import Files
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.table import Table, choose_rows, relative
from opensiglip.data.sources.values import is_number
from opensiglip.errors import UserError
from opensiglip.json_file import DATA, load_json

VERSION = "1"  # of the rows: raise it where a parser reads anything otherwise
SMALL = 1 << 22  # bytes of files that are parsed anew each time
MAX_FILE = 1 << 33  # bytes of one annotation file: it is read into memory
BATCH = 4096
SCHEMA = pa.schema(
    [
        ("file_name", pa.large_string()),
        ("split", pa.string()),
        ("captions", pa.int32()),
        ("regions", pa.int32()),
        ("row", pa.large_string()),
    ]
)


class Record(NamedTuple):
    """An image's row: its file below the root, the split that the data names, and the columns of metadata.jsonl."""

    file_name: str
    split: str | None
    row: dict[str, Any]


Parse = Callable[[Counter[str]], Iterator[Record]]  # counts by reason what it leaves out


@dataclass(frozen=True)
class Records:
    """The table, a row of `SCHEMA` each, and what was left out."""

    table: pa.Table
    skipped: Counter[str]


def read_records(kind: str, files: Sequence[Path], options: Sequence[str], parse: Parse) -> Records:
    """What `parse` makes of the files, or made of them the last time. Raises UserError where it does.

    `options`: whatever else its rows depend on.
    """
    facts = [stat_of(file) for file in files]
    if sum(size for _, size, _ in facts) < SMALL:
        sink = pa.BufferOutputStream()
        write(sink, parse)
        return load(pa.BufferReader(sink.getvalue()))
    digest = hashlib.blake2b(json.dumps([VERSION, kind, facts, list(options)]).encode(), digest_size=16).hexdigest()
    place = cache_folder() / "records" / f"{digest}.arrow"
    try:
        return load(pa.memory_map(str(place)))
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):  # none there, or damaged
        pass
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            with pa.OSFile(str(part), "wb") as sink:
                write(sink, parse)
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{place.parent} can't be written to ({error.strerror}); set XDG_CACHE_HOME to a folder that can."
        ) from None
    return load(pa.memory_map(str(place)))


def stat_of(file: Path) -> tuple[str, int, int]:
    """Path, size in bytes and time in ns. Raises UserError."""
    try:
        facts = file.stat()
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror or error}); name a file that can.") from None
    if facts.st_size > MAX_FILE:
        raise UserError(f"{file} is over {MAX_FILE >> 30} GB; give annotations in smaller files.")
    return str(file.resolve()), facts.st_size, facts.st_mtime_ns


def write(sink: Any, parse: Parse) -> None:
    """Write all rows in batches, and what was left out beside an empty last one."""
    skipped = Counter[str]()
    records = parse(skipped)
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        while batch := list(islice(records, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist([to_columns(record) for record in batch], SCHEMA))
        writer.write_batch(pa.RecordBatch.from_pylist([], SCHEMA), {"skipped": json.dumps(skipped)})


def to_columns(record: Record) -> dict[str, Any]:
    count = {name: len(record.row.get(name) or ()) for name in ("captions", "regions")}
    # Half a character, which JSON can spell, is none in UTF-8: it stays spelt.
    return {**record._asdict(), **count, "file_name": plain(record.file_name), "row": json.dumps(record.row)}


def plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def load(source: Any) -> Records:
    """A table that `write` wrote. Raises what Arrow and JSON do where it is none."""
    reader = pa.ipc.open_file(source)
    _, told = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
    if reader.schema != SCHEMA:
        raise ValueError("of other columns")
    return Records(reader.read_all().combine_chunks(), Counter(json.loads(told[b"skipped"])))


class Annotated(Table):
    """Images with the annotations of records. Rows of a split; where no record names one, one image in fifty is val."""

    fixed_layout = BoxLayout()

    def __init__(
        self, spec: Spec, split: str, languages: Sequence[str] | None, records: Records, root: Path, kind: str
    ) -> None:
        self.kind, self.table = kind, records.table
        names, splits = self.table["file_name"].to_pylist(), self.table["split"].to_pylist()
        rows = choose_rows(names, splits, split)
        columns = Columns("file_name", ("captions",), None, None, ("regions", "masks", "width", "height", "image_id"))
        super().__init__(spec, split, languages, rows, columns, root)
        self.skipped.update(records.skipped)

    def values(self, row: int) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.table["row"][row].as_py())
        return values

    def cell(self, row: int) -> str:
        return str(self.table["file_name"][row].as_py())

    def key(self, row: int) -> str:
        return self.cell(row)

    def group(self, index: int) -> str:
        return f"{self.root}/{self.key(self.rows.row(index))}"

    def facts(self) -> dict[str, Any]:
        own = self.table.take([self.rows.row(index) for index in range(len(self.rows))])
        return {name: pa.compute.sum(own[name]).as_py() for name in ("captions", "regions")}


def read_json(file: Path, shape: str) -> Any:
    """A JSON file. Raises UserError, saying what `shape` it should have."""
    stat_of(file)
    try:
        return load_json(file, DATA)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read ({error}); give a JSON file in {shape}.") from None


def first_name(records: Records) -> str | None:
    """The image to look for."""
    return records.table["file_name"][0].as_py() if records.table.num_rows else None


def find_root(spec: Spec, name: str | None, places: Sequence[Path]) -> Path:
    """The folder of the images: the one named, or the first of these in which one lies. Raises UserError."""
    if "root" in spec.options:
        return Path(spec.options["root"]).expanduser()
    if name is None:
        raise UserError(f"--data {spec.name} has no image with an annotation; name one that has.")
    if (found := holding(name, places)) is None:
        raise UserError(f"--data {spec.name}: image {name} is not found; give its folder as {spec.path}?root=FOLDER.")
    return found


def holding(name: str, places: Sequence[Path]) -> Path | None:
    """The first of these folders below which the image lies."""
    for root in places:
        try:
            Files(root).find(relative(name, root.resolve()))
        except Exception:  # BrokenExample, and whatever a file system says to an odd name
            continue
        return root
    return None


def corners(box: Any) -> Any:
    """COCO's x, y, width, height as x1, y1, x2, y2; what is no box stays as it is, for the row checker to refuse."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        return box
    left, top, width, height = box
    return [left, top, left + width, top + height]


def counted(regions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The regions of an image, each with how many of them have its phrase."""
    counts = Counter(phrase.lower() for region in regions if isinstance(phrase := region.get("phrase"), str))
    return [
        region | {"n_boxes": counts[phrase.lower()]} if isinstance(phrase := region.get("phrase"), str) else region
        for region in regions
    ]
