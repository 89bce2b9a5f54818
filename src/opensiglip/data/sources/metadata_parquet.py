"""imagefolder's `metadata.parquet`: the columns of metadata.jsonl, with images as files below the folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.columns import find_columns
from opensiglip.data.sources.metadata import SPLITS
from opensiglip.data.sources.objects import category_names
from opensiglip.data.sources.parquet import features_of
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.table import Table, choose_rows
from opensiglip.errors import UserError

NAME = "metadata.parquet"


class MetadataParquet(Table):
    """Rows of the file, which has no images in it and so fits into memory; `split` says which split a row is of."""

    kind = "metadata.parquet"

    def __init__(self, spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> None:
        """Raises UserError where the file can't be read or its columns are not there."""
        path = Path(spec.path).expanduser()
        file = path / NAME if path.is_dir() else path
        try:
            self.table = pq.read_table(file, use_threads=False).combine_chunks()
            features = features_of(self.table.schema)
            columns = find_columns(self.table.column_names, spec, features)
            names = [str(name) for name in self.table[columns.image].to_pylist()]
            splits = self.table["split"].to_pylist() if "split" in self.table.column_names else None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{file} can't be read ({str(error).splitlines()[0]}); fix the file.") from None
        if splits is not None and (unknown := {str(name) for name in splits if name and name not in SPLITS}):
            raise UserError(f"{file}: split {sorted(unknown)[0]!r} is not train, val or test.")
        classes = category_names(features.get(columns.label or ""))
        super().__init__(spec, split, languages, choose_rows(names, splits, split), columns, file.parent, classes)

    def values(self, row: int) -> dict[str, Any]:
        return {name: self._cell(name, row) for name in self.named.names}

    def cell(self, row: int) -> Any:
        return self._cell(self.named.image, row)

    def key(self, row: int) -> str:
        return str(self.cell(row))

    def group(self, index: int) -> str:
        return f"{self.root}/{self.key(self.rows.row(index))}"

    def _cell(self, column: str, row: int) -> Any:
        try:
            return self.table[column][row].as_py()
        except (pa.ArrowException, ValueError):
            raise BrokenExample("row can't be decoded") from None
