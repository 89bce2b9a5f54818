"""`datasets.Dataset` as a source: from the hub, saved to disk, an Arrow file, or handed over."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.columns import find_columns
from opensiglip.data.sources.metadata import SPLITS
from opensiglip.data.sources.objects import category_names
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import Part, choose
from opensiglip.data.sources.table import Table
from opensiglip.errors import EmptySplit, UserError


class Tabled(Table):
    """Rows of a `datasets.Dataset`, mapped from disk; images are not decoded by it."""

    kind = "datasets"

    def __init__(
        self,
        spec: Spec,
        *,
        split: str = "train",
        languages: Sequence[str] | None = None,
        dataset: Dataset | DatasetDict | None = None,
    ) -> None:
        """Raises UserError where it can't be read or its columns are not there."""
        self.revision: str | None = None
        if dataset is None:
            dataset, self.revision = fetch(spec) if spec.kind == "hf" else (load(spec), None)
        names: list[str | None] = list(dataset) if isinstance(dataset, dict) else [None]
        parts = list(dataset.values()) if isinstance(dataset, dict) else [dataset]
        chosen, part = choose([SPLITS.get(name or "train", name) for name in names], split)
        if not chosen:
            have = ", ".join(str(name) for name in names)
            raise EmptySplit(f"{spec.name} has no split {split!r} (it has {have}); choose another.")
        try:
            rows = parts[chosen[0]] if len(chosen) == 1 else datasets.concatenate_datasets([parts[at] for at in chosen])
            features = rows.features.to_dict()
            columns = find_columns(rows.column_names, spec, features)
            if isinstance(rows.features[columns.image], datasets.Image):
                rows = rows.cast_column(columns.image, datasets.Image(decode=False))
            rows = rows.with_format("arrow")
            self.values_of, self.cells = rows.select_columns(columns.names), rows.select_columns([columns.image])
        except UserError:
            raise
        except Exception as error:
            raise _refused(spec, error) from None
        root = Path(spec.path).expanduser() if spec.path and Path(spec.path).expanduser().is_dir() else None
        classes = category_names(features.get(columns.label))
        super().__init__(spec, split, languages, Part([len(rows)], part), columns, root, classes)

    def values(self, row: int) -> dict[str, Any]:
        return read_row(self.values_of, row) if self.named.names else {}

    def cell(self, row: int) -> Any:
        return read_row(self.cells, row)[self.named.image]

    def facts(self) -> dict[str, Any]:
        return super().facts() | ({} if self.revision is None else {"revision": self.revision})


def read_row(rows: Dataset, row: int) -> dict[str, Any]:
    """A row of a dataset in Arrow's format. Raises BrokenExample.

    An Arrow file is mapped as it is, and its offsets are addresses: those of the row are checked before they are used.
    """
    try:
        table: pa.Table = rows[row]
        table.validate(full=True)
        values: dict[str, Any] = table.to_pylist()[0]
    except (pa.ArrowException, ValueError, OSError):
        raise BrokenExample("row can't be decoded") from None
    return values


def load(spec: Spec) -> Dataset | DatasetDict:
    """What `save_to_disk` wrote, or an Arrow file. Raises UserError."""
    path = Path(spec.path).expanduser()
    try:
        if path.is_file():
            return Dataset.from_file(str(path))
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # `datasets` raises all sorts
        raise _refused(spec, error) from None
    return found


def fetch(spec: Spec) -> tuple[DatasetDict, str | None]:
    """A dataset of the hub and the revision it is of, so that it can be asked for again. Raises UserError."""
    try:
        revision = spec.options.get("revision")
        if not Path(spec.path).expanduser().exists():
            from huggingface_hub import HfApi  # only here is the hub asked

            revision = HfApi().dataset_info(spec.path, revision=revision).sha
        return datasets.load_dataset(spec.path, spec.options.get("config"), revision=revision), revision
    except Exception as error:  # of the hub, of the connection, of the files
        raise UserError(f"--data {spec.name} can't be fetched from the hub ({_line(error)}); check its name.") from None


def _refused(spec: Spec, error: Exception) -> UserError:
    return UserError(f"--data {spec.name} can't be read as a saved dataset ({_line(error)}).")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
