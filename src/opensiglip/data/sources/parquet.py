"""Parquet files as a source. A shard is a row group: what is decoded as a whole is what the order moves about."""

import json
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.ahead import fetch_ahead
from opensiglip.data.sources.columns import find_columns
from opensiglip.data.sources.objects import category_names
from opensiglip.data.sources.recent import Recent
from opensiglip.data.sources.remote import RemoteFile, read_range
from opensiglip.data.sources.shards import check_cache, find_files, folder_of, lanes_of, shards_of
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import Part, choose, split_in
from opensiglip.data.sources.table import Table
from opensiglip.errors import EmptySplit, UserError

KEPT_BYTES = 1 << 29  # of decoded row groups that a process keeps
MAX_LANES = 64


class Parquet(Table):
    """Rows of parquet files. Images are encoded bytes, `datasets`' {bytes, path}, or paths below the files' folder."""

    kind = "parquet"

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Reads the footers. Raises UserError where a file can't be read or the columns are not there."""
        files = find_files(spec, ".parquet")
        chosen, part = choose([split_in(file) for file in files], split)
        groups, widest, names, features = [], 1, list[str](), dict[str, Any]()
        for file in (files[at] for at in chosen):
            footer, schema = read_footer(file)
            if names and schema.names != names:
                raise UserError(f"--data {spec.name}: {file} has other columns than the files before it.")
            names, features = schema.names, features_of(schema)
            for group in range(footer.num_row_groups):
                facts = footer.row_group(group)
                groups.append((file, group, facts.num_rows))
                widest = max(widest, facts.total_byte_size)
        self.groups = [(file, group) for file, group, _ in groups]
        self.sizes = np.array([rows for _, _, rows in groups], np.int64)
        self.ends = np.array(list(accumulate(self.sizes.tolist())), np.int64)
        rows = Part(self.sizes.tolist(), part)
        self.shards = rows.sizes.tolist()
        # A window opens up to two groups a lane.
        self.lanes = lanes_of(spec, min(MAX_LANES, max(2, KEPT_BYTES // (2 * widest))))
        used = list(dict.fromkeys(file for file, _ in self.groups))
        check_cache(spec, used, self.lanes)
        self.fetches = any(isinstance(file, RemoteFile) for file in used)
        self.texts_read = Recent(self._read_values, 2 * self.lanes)
        self.images_read = Recent(self._read_images, 2 * self.lanes)
        if not groups:
            raise EmptySplit(f"{spec.name} has no row in split {split!r}; choose another.")
        columns = find_columns(names, spec, features)
        classes = category_names(features.get(columns.label or ""))
        super().__init__(spec, split, languages, rows, columns, folder_of(files[0]), classes)

    def values(self, row: int) -> dict[str, Any]:
        return self._cells(self.texts_read, row)

    def cell(self, row: int) -> Any:
        return self._cells(self.images_read, row)[self.named.image]

    def key(self, row: int) -> str:
        shard, at = self._place(row)
        file, group = self.groups[shard]
        return f"{file.name}/{group}/{at}"

    def prepare(self, indices: Sequence[int]) -> None:
        fetch_ahead(shards_of(indices, self.rows, self.ends, [file for file, _ in self.groups]))

    def _place(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.ends, row, side="right"))
        return shard, row - int(self.ends[shard] - self.sizes[shard])

    def _cells(self, read: Recent[int, pa.Table], row: int) -> dict[str, Any]:
        shard, at = self._place(row)
        table = read[shard]
        if table.num_rows != self.sizes[shard]:
            raise BrokenExample(f"{self.groups[shard][0].name} has changed")
        try:
            values: dict[str, Any] = table.slice(at, 1).to_pylist()[0]
        except (pa.ArrowException, ValueError):  # strings that are not UTF-8, times that Python has not
            raise BrokenExample("row can't be decoded") from None
        return values

    def _read_values(self, shard: int) -> pa.Table:
        return self._read(shard, self.named.names)

    def _read_images(self, shard: int) -> pa.Table:
        return self._read(shard, [self.named.image])

    def _read(self, shard: int, columns: list[str]) -> pa.Table:
        file, group = self.groups[shard]
        try:
            with open_here(file) as copy, pq.ParquetFile(copy) as opened:
                return opened.read_row_group(group, columns=columns, use_threads=False)
        except (OSError, ValueError, pa.ArrowException):  # ValueError: names of columns that are not UTF-8
            raise BrokenExample(f"{file.name} can't be read") from None


def open_here(file: Path | RemoteFile) -> BinaryIO:
    """A file, or the copy of one elsewhere. Raises OSError and BrokenExample."""
    return os.fdopen(file.open(), "rb") if isinstance(file, RemoteFile) else file.open("rb")


def read_footer(file: Path | RemoteFile) -> tuple[pq.FileMetaData, pa.Schema]:
    """Row groups and columns of a file. Raises UserError."""

    def read(place: Path | pa.NativeFile) -> tuple[pq.FileMetaData, pa.Schema]:
        with pq.ParquetFile(place) as opened:
            return opened.metadata, opened.schema_arrow

    try:
        return read_range(file, read) if isinstance(file, RemoteFile) else read(file)
    except (OSError, ValueError, pa.ArrowException, BrokenExample) as error:
        raise UserError(f"{file} can't be read ({str(error).splitlines()[0]}); fix or leave out the file.") from None


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` wrote of each column; nothing where another program wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}
