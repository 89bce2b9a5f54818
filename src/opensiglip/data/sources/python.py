"""Python objects as sources: `FILE.py:FUNCTION`, or an object handed to `train` or `open_source`."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from datasets import Dataset, DatasetDict

from opensiglip.data.example import BrokenExample, Example, Source
from opensiglip.data.sources.columns import Columns, find_columns
from opensiglip.data.sources.dataset import Tabled
from opensiglip.data.sources.metadata import SPLITS
from opensiglip.data.sources.row import row_of
from opensiglip.data.sources.spec import Spec
from opensiglip.data.sources.split import Part, choose
from opensiglip.data.sources.table import Table
from opensiglip.errors import EmptySplit, UserError
from opensiglip.user_file import load

handed_over: dict[str, Any] = {}  # objects of this process by the spec that names them


def spec_of(data: Any) -> str:
    """A spec for an object, for this process; a text is one already. Raises UserError for what is no data set."""
    if isinstance(data, str | PurePath):
        return str(data)
    if not (isinstance(data, Mapping) or (hasattr(data, "__len__") and (has_items(data)))):
        raise UserError(
            f"data {type(data).__name__} is not a data set; give an object with len() and [i] or example(i)."
        )
    known = [name for name, one in handed_over.items() if one is data]
    name = known[0] if known else f"object:{type(data).__name__}-{len(handed_over)}"
    handed_over[name] = data
    return name


def has_items(data: Any) -> bool:
    """Can its rows be asked for by number?"""
    return hasattr(data, "__getitem__") or hasattr(data, "example")


def open_object(spec: Spec, *, split: str = "train", languages: Sequence[str] | None = None) -> Source:
    """The source that an object is; a dict of objects is one of splits. Raises UserError."""
    data = handed_over.get(f"object:{spec.path}") if spec.kind == "object" else call(spec)
    if data is None:
        raise UserError(f"--data {spec.name} names an object of a process that has ended; hand it over again.")
    if isinstance(data, Dataset | DatasetDict):
        return Tabled(spec, split=split, languages=languages, dataset=data)
    if isinstance(data, Mapping):
        chosen, part = choose([SPLITS.get(str(name), str(name)) for name in data], split)
        if not chosen:
            have = ", ".join(map(str, data))
            raise EmptySplit(f"{spec.name} has no split {split!r} (it has {have}); choose another.")
        return Objects(spec, list(data.values())[chosen[0]], split, languages, part)
    chosen, part = choose([None], split)
    if not chosen:
        raise EmptySplit(f"{spec.name} has no split {split!r}; give a dict of data sets by split for that.")
    return Objects(spec, data, split, languages, part)


def call(spec: Spec) -> Any:
    """What the function of a user's file gives. Raises UserError."""
    file, _, name = spec.path.rpartition(":")
    function = load("data", file, name)
    if not callable(function):
        raise UserError(f"--data {spec.name}: {file} has no function {name!r}; name one that returns a data set.")
    data = function()
    if not (isinstance(data, Mapping) or (hasattr(data, "__len__") and has_items(data))):
        raise UserError(f"--data {spec.name}: {name}() returns no object with len() and [i] or example(i).")
    return data


class Objects(Table):
    """Rows of an object with `len` and `example(i)`, an `Example`, or `[i]`: a dict of columns or a pair.

    A pair, as torchvision's data sets give it, is an image with a text, a list of texts, or the number of a class,
    which the object's `classes` names.
    """

    kind = "python"

    def __init__(self, spec: Spec, data: Any, split: str, languages: Sequence[str] | None, part: Any) -> None:
        self.data = data
        if not len(data):
            raise UserError(f"{spec.name} has no row; give it some.")
        rows, classes = Part([len(data)], part), getattr(data, "classes", ())
        first = data[0] if not hasattr(data, "example") else None
        columns = Columns("image", ("text",), "label", None, ())
        if isinstance(first, Mapping):
            columns = find_columns(list(first), spec)
        super().__init__(spec, split, languages, rows, columns, classes=[str(name) for name in classes])

    def columns(self, row: int) -> dict[str, Any]:
        item = self._item(row)
        return row_of(item) if isinstance(item, Example) else super().columns(row)

    def values(self, row: int) -> dict[str, Any]:
        item = self._item(row)
        if isinstance(item, Mapping):
            return {name: item[name] for name in self.named.names if name in item}
        target = item[1]
        return {"text": target} if isinstance(target, str | list | tuple) else {"label": target}

    def cell(self, row: int) -> Any:
        item = self._item(row)
        if isinstance(item, Example):
            return item.image
        return item.get(self.named.image) if isinstance(item, Mapping) else item[0]

    def _item(self, row: int) -> Any:
        """Row `row`: an `Example`, a dict or a pair. Raises BrokenExample for whatever its object raises."""
        try:
            item = self.data.example(row) if hasattr(self.data, "example") else self.data[row]
        except Exception as error:  # somebody's code
            raise BrokenExample(f"row raises {type(error).__name__}") from None
        if not isinstance(item, Example | Mapping) and not (isinstance(item, list | tuple) and len(item) == 2):
            raise BrokenExample("row is neither an Example nor a dict nor a pair")
        return item
