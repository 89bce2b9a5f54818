"""A source of whose images and texts a reference's rows lie on disk: its examples, with these rows."""

from copy import copy
from dataclasses import replace

from opensiglip.data.example import Example, Source
from opensiglip.data.fields.curation import ROWS
from opensiglip.data.fields.states import IMAGE, TEXTS
from opensiglip.data.sources.cached import CachedSource


class ReferencedSource(CachedSource):
    """Another source's examples as they are, with an extra ROWS: (the image's row [E], {caption: its row [E]})."""

    def example(self, index: int, language: str | None = None) -> Example:
        example, rows = self.source.example(index, language), super().example(index).extras
        return replace(example, extras=example.extras | {ROWS: (rows[IMAGE], rows[TEXTS])})

    def over(self, source: Source) -> "ReferencedSource":
        """The same rows beside the examples of another source, which has the same ones in the same order."""
        found = copy(self)
        found.source = source
        return found
