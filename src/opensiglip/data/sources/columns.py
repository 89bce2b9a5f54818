"""Which columns of a table are the image, the texts and the class; and its rows as rows of metadata.jsonl."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.metadata import EXTRAS, MAX_LINE
from opensiglip.data.sources.objects import category_names, normalise_objects
from opensiglip.data.sources.spec import Spec
from opensiglip.errors import UserError

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "picture", "photo", "pixel_values")
PATHS = ("file_name", "filepath", "image_path", "path", "filename", "file_path", "img_path", "image_file", "file")
TEXTS = ("captions", "caption", "text", "txt", "title", "sentences", "alt_text", "alttext", "description", "texts")
LABELS = ("label", "labels", "class", "cls", "category", "fine_label")
LANGUAGES = ("lang", "language")
# Columns that mean in a table what they mean in metadata.jsonl.
SAME = ("key", "captions_i18n", "captions_synthetic", "regions", "objects", "width", "height", *EXTRAS)


@dataclass(frozen=True)
class Columns:
    """The columns of a table by what they hold."""

    image: str  # encoded, or a path; "" where the image is not in the table
    texts: tuple[str, ...]
    label: str | None
    language: str | None
    same: tuple[str, ...]
    json: str | None = None  # a row of metadata.jsonl as text, for what is not in columns of its own
    categories: tuple[str, ...] = ()  # names of the numbers in `objects`
    shares: tuple[float, ...] = ()  # of each of `texts`: how often a visit draws one of it; none: all texts alike

    @property
    def names(self) -> list[str]:
        """Every column but the image, each once."""
        single = (self.label, self.language, self.json)
        named = [*self.texts, *self.same, *(name for name in single if name is not None)]
        return list(dict.fromkeys(named))

    def __str__(self) -> str:
        found = {"image": self.image, "texts": ", ".join(self.texts), "label": self.label, "language": self.language}
        return "; ".join(f"{what}: {name}" for what, name in found.items() if name)

    def row(self, values: dict[str, Any]) -> dict[str, Any]:
        """A table's row as metadata.jsonl would have it. Raises BrokenExample for texts that are none."""
        row: dict[str, Any] = {}
        if self.json is not None and (text := values.get(self.json)) is not None:
            row = {name: value for name, value in parse_json(text).items() if name in SAME or name == "lang"}
        row |= {name: values[name] for name in self.same if values.get(name) is not None}
        if "objects" in row:
            row["objects"] = normalise_objects(row["objects"], self.categories)
        if self.language is not None and values.get(self.language):
            row["lang"] = values[self.language]
        found = [texts_of(values.get(name), name) for name in self.texts]
        if self.shares:
            row["captions_i18n"] = [
                *row.get("captions_i18n", ()),
                *(
                    {"lang": row.get("lang") or "en", "text": text, "weight": share / len(texts)}
                    for texts, share in zip(found, self.shares, strict=True)
                    for text in texts
                    if share
                ),
            ]
        elif any(found):
            row["captions"] = [text for texts in found for text in texts]
        if self.label is not None and values.get(self.label) is not None:
            row["label"] = values[self.label]
        return row


def find_columns(names: Sequence[str], spec: Spec, features: Mapping[str, Any] | None = None) -> Columns:
    """The columns that the spec names, else those with usual names; `features`: what `datasets` says of them.

    Raises UserError where they are not there.
    """
    shares = spec.texts()
    named = {option: spec.several(option) for option in ("image", "label", "lang")} | {"text": tuple(shares)}
    for given in named.values():
        if missing := [name for name in given if name not in names]:
            raise UserError(f"--data {spec.name}: there is no column {missing[0]!r}; there are {', '.join(names)}.")
    found = spec.options.get("image") or usual(names, IMAGES) or usual(names, PATHS)
    if found is None:
        raise UserError(
            f"--data {spec.name} has no column with a usual name for images; give ?image=NAME of {', '.join(names)}."
        )
    texts = tuple(shares) or tuple(name for name in names if name.lower() in TEXTS and name != found)
    label = spec.options.get("label") or usual(names, LABELS)
    same = tuple(name for name in names if name in SAME and name not in (*texts, label, found))
    language = spec.options.get("lang") or usual(names, LANGUAGES)
    categories = category_names((features or {}).get("objects"))
    json_in = "json" if "json" in names else None
    return Columns(found, texts, label, language, same, json_in, categories, shares_of(shares))


def shares_of(texts: Mapping[str, float | None]) -> tuple[float, ...]:
    """The shares of texts, or none where none is given."""
    return tuple(share for share in texts.values() if share is not None)


def parse_json(data: Any) -> dict[str, Any]:
    """A JSON object of texts or bytes, or one already read. Raises BrokenExample."""
    if isinstance(data, dict):
        return data
    if not isinstance(data, str | bytes) or len(data) > MAX_LINE:
        raise BrokenExample("json is not JSON")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenExample("json is not JSON") from None
    if not isinstance(values, dict):
        raise BrokenExample("json is not an object")
    return values


def usual(names: Collection[str], wanted: Sequence[str]) -> str | None:
    """The column whose name, in capitals or not, stands first among those wanted."""
    lower = {name.lower(): name for name in reversed(list(names))}
    return next((lower[name] for name in wanted if name in lower), None)


def texts_of(value: Any, name: str) -> list[str]:
    """A text, or a list of them, as a list; nothing is none. Raises BrokenExample."""
    if value is None or value != value:  # a number that is none, as pandas writes an empty cell
        return []
    if isinstance(value, dict) and isinstance(value.get("raw"), str):  # Karpathy's sentences
        return [value["raw"]]
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_of(item, name)]
    if not isinstance(value, str):
        raise BrokenExample(f"{name} is not text")
    return [value]
