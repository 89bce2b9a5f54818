"""A source of whose images and texts a reference's rows lie on disk: its examples, with these rows."""

import json
from copy import copy
from dataclasses import replace
from pathlib import Path

from opensiglip.data.example import Example, Source
from opensiglip.data.fields.curation import ROWS
from opensiglip.data.sources.cached import CachedSource, TextInput


class ReferencedSource(CachedSource):
    """Another source's examples as they are, with an extra of the rows: (the image's [E], {caption: its own [E]})."""

    def __init__(self, source: Source, lines: Path, images: Path, texts: tuple[Path, TextInput], role: str) -> None:
        super().__init__(source, lines, images, texts, side=0)
        self.role = role

    def example(self, index: int, language: str | None = None) -> Example:
        example, row = self.source.example(index, language), self.states(json.loads(self.lines[index]))
        return replace(example, extras=example.extras | {self.role + ROWS: (row, self.text_rows)})

    def over(self, source: Source) -> "ReferencedSource":
        """The same rows beside the examples of another source, which has the same ones in the same order."""
        found = copy(self)
        found.source = self.source.over(source) if isinstance(self.source, ReferencedSource) else source
        return found


def without_rows(source: Source) -> Source:
    """The source whose examples have no rows of a reference yet."""
    return without_rows(source.source) if isinstance(source, ReferencedSource) else source
