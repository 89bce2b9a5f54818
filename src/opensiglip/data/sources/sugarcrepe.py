"""A file in SugarCrepe's shape as a source: images, each with a caption and others that are not true of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opensiglip.data.example import BrokenExample, Caption, Example, Source
from opensiglip.data.sources.files import Files, parse_file_name
from opensiglip.data.sources.images import read_image
from opensiglip.data.sources.values import checked_text, negative_captions, resolve_codes
from opensiglip.errors import EmptySplit, UserError
from opensiglip.json_file import load_json

LARGEST = 200_000_000  # bytes of the file


class Pairs(Source):
    """{"0": {"filename": ..., "caption": ..., "negative_caption": ...}, ...}, or a list of such; English.

    (SugarCrepe, arXiv:2306.14610, data/*.json.) `negative_caption` is a text or, as ARO-Order needs it, a list of them:
    the caption is to beat each. Images lie beside the file, or in a folder `images` beside it. It is a
    test set: there is nothing to train on.
    """

    def __init__(self, spec: str, *, split: str = "test", languages: Sequence[str] | None = None) -> None:
        """Read and check the file. Raises UserError where it is none of that shape, or its images are not there."""
        path = Path(spec).expanduser().resolve()
        if split == "train":
            raise EmptySplit(f"{spec} is a test set, so it has no split 'train'; judge on it with `opensiglip eval`.")
        wanted = resolve_codes(languages)
        if wanted is not None and "en" not in wanted:
            raise UserError(f"{spec} has no texts in {', '.join(wanted)}; its language is en.")
        self.name, self.languages, self.skipped, self.kind = spec, ("en",), Counter(), path.stem
        self.rows: list[tuple[Path, str, list[str]]] = []
        files = Files(path.parent)
        for item in read_items(path):
            try:
                self.rows.append(parse(item, files))
            except BrokenExample as reason:
                self.skipped[str(reason)] += 1
        if not self.rows:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.skipped.most_common(3))
            raise UserError(f"{spec} has no pair that can be used ({reasons or 'it is empty'}); fix the file.")

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, language: str | None = None) -> Example:
        """Example `index`. Raises BrokenExample if its image can't be decoded."""
        path, caption, negatives = self.rows[index]
        extras = {"negative_caption": negatives, "label": self.kind}
        return Example(read_image(path), (Caption(caption),), (), path.name, extras, self.group(index))

    def group(self, index: int) -> str:
        return str(self.rows[index][0])

    def texts(self) -> Iterator[str]:
        return (caption for _, caption, _ in self.rows)

    def describe(self) -> dict[str, Any]:
        return {"source": self.name, "kind": "pairs", "images": len(self), "skipped": dict(self.skipped.most_common())}


def read_items(path: Path) -> list[Any]:
    """What the file lists. Raises UserError."""
    try:
        stored = load_json(path, LARGEST)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}); give a JSON file in SugarCrepe's shape.") from error
    if isinstance(stored, dict):
        stored = list(stored.values())
    if not isinstance(stored, list):
        raise UserError(f"{path} is neither an object nor a list; give a JSON file in SugarCrepe's shape.")
    return stored


def parse(item: Any, files: Files) -> tuple[Path, str, list[str]]:
    """Image, caption and its negatives. Raises BrokenExample."""
    if not isinstance(item, dict):
        raise BrokenExample("not an object")
    given = item.get("caption")
    caption = checked_text(given) if isinstance(given, str) else ""
    negatives = negative_captions(item.get("negative_caption", ""))
    if not caption or not negatives:
        raise BrokenExample("no caption or no negative_caption")
    name = parse_file_name(item.get("filename"))
    try:
        found = files.find(name)
    except BrokenExample:
        found = files.find(f"images/{name}")
    return files.root / found, caption, negatives
