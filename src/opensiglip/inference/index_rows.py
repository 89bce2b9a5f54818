"""The rows of an index on disk as parquet: of each image's file its vector, or why it can't be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opensiglip.disk import whole_file
from opensiglip.errors import UserError


@dataclass(frozen=True)
class File:
    """An image's file as it was when it was embedded."""

    path: str  # below the folder
    bytes: int
    modified: int  # nanoseconds

    @classmethod
    def found(cls, folder: Path, path: Path) -> "File":
        """The file as it is now."""
        about = path.stat()
        return cls(path.relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns)


def schema(width: int) -> pa.Schema:
    """Of the rows; of embedding and reason one is null."""
    columns = {"path": pa.string(), "bytes": pa.int64(), "modified": pa.int64()}
    return pa.schema(columns | {"embedding": pa.list_(pa.float32(), width), "reason": pa.string()})


def write_rows(path: Path, rows: dict[File, np.ndarray | str], width: int) -> None:
    """A row a file, as `schema` has it."""
    vectors = [value if isinstance(value, np.ndarray) else np.zeros(width, np.float32) for value in rows.values()]
    mask = pa.array([isinstance(value, str) for value in rows.values()])
    flat = pa.array(np.concatenate(vectors) if vectors else np.zeros(0, np.float32), pa.float32())
    columns = [
        [file.path for file in rows],
        [file.bytes for file in rows],
        [file.modified for file in rows],
        pa.FixedSizeListArray.from_arrays(flat, width, mask=mask),
        [value if isinstance(value, str) else None for value in rows.values()],
    ]
    with whole_file(path) as part:
        pq.write_table(pa.table(columns, schema(width)), part, write_page_checksum=True)


def read_table(path: Path, width: int, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a file, or some of their columns. Raises UserError where they can't be read or are others."""
    try:
        if pq.read_schema(path).equals(schema(width)):
            return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException):
        pass
    raise UserError(f"{path} is missing or damaged; run its `opensiglip search-index` again.")


def read_rows(path: Path, width: int) -> dict[File, np.ndarray | str]:
    """The rows that `write_rows` wrote. Raises UserError."""
    table = read_table(path, width)
    vectors = table["embedding"].combine_chunks().values.to_numpy(zero_copy_only=False).reshape(-1, width)
    names = (table[name].to_pylist() for name in ("path", "bytes", "modified", "reason"))
    pairs = zip(zip(*names, strict=True), vectors, strict=True)
    return {
        File(name, count, modified): vector if reason is None else reason
        for (name, count, modified, reason), vector in pairs
    }
