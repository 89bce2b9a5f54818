"""A source of whose images and texts a reference's rows lie on disk: its examples, with these rows."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

from opensiglip.data.example import Example, Source
from opensiglip.data.fields.curation import ROWS
from opensiglip.data.fields.states import IMAGE, TEXTS
from opensiglip.data.sources.cached import CachedSource


class ReferencedSource(CachedSource):
    """Another source's examples as they are, with an extra of the rows: (the image's [E], {caption: its own [E]})."""

    def __init__(self, source: Source, folders: Sequence[Path], side: int, role: str) -> None:
        super().__init__(source, folders, side)
        self.role = role

    def example(self, index: int, language: str | None = None) -> Example:
        example, rows = self.source.example(index, language), super().example(index).extras
        return replace(example, extras=example.extras | {self.role + ROWS: (rows[IMAGE], rows[TEXTS])})

    def over(self, source: Source) -> "ReferencedSource":
        """The same rows beside the examples of another source, which has the same ones in the same order."""
        found = copy(self)
        found.source = self.source.over(source) if isinstance(self.source, ReferencedSource) else source
        return found
