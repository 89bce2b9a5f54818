"""A source whose texts are cleaned: `SPEC?clean=alt-text`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from opensiglip.data.cleaning import clean_alt_text
from opensiglip.data.example import BrokenExample, Caption, Example, Region, Source
from opensiglip.data.sources.metadata import ABOUT

SAMPLE = 1000  # texts that are counted for the start-up line
NOTHING_LEFT = "cleaning leaves no text"


class Cleaned(Source):
    """Another source with its captions and phrases by `clean_alt_text`; what becomes empty is left out.

    `latest` counts the rules that changed the texts of the example read last.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.languages, self.skipped = source, source.name, source.languages, source.skipped
        self.shards, self.lanes, self.latest = source.shards, source.lanes, Counter[str]()

    def __len__(self) -> int:
        return len(self.source)

    def example(self, index: int, language: str | None = None) -> Example:
        """Example `index`. Raises BrokenExample also where nothing to learn from is left."""
        return self._cleaned(self.source.example(index, language))

    def without_pixels(self, index: int, height: int, width: int) -> Example:
        return self._cleaned(self.source.without_pixels(index, height, width))

    def _cleaned(self, example: Example) -> Example:
        self.latest = Counter()
        extras = dict(example.extras)
        if "captions_synthetic" in extras:
            extras["captions_synthetic"] = self._captions(extras["captions_synthetic"])
        captions, regions = self._captions(example.captions), tuple(self._regions(example.regions))
        if not captions and not regions and not extras.keys() - ABOUT:
            raise BrokenExample(NOTHING_LEFT)
        return replace(example, captions=captions, regions=regions, extras=extras)

    def encoded(self, index: int) -> bytes | None:
        return self.source.encoded(index)

    def group(self, index: int) -> str:
        return self.source.group(index)

    def texts(self) -> Iterator[str]:
        return filter(None, (self._text(text) for text in self.source.texts()))

    def labels(self) -> Sequence[Any]:
        return self.source.labels()

    def describe(self) -> dict[str, Any]:
        """The source's facts, and what is cleaned of its first texts."""
        before, self.latest = self.latest, Counter()
        texts = [self._text(text) for text in islice(self.source.texts(), SAMPLE)]
        counted, self.latest = self.latest, before
        return self.source.describe() | {f"cleaned_of_{len(texts)}_texts": dict(counted.most_common())}

    def _captions(self, captions: Iterable[Caption]) -> tuple[Caption, ...]:
        cleaned = (replace(caption, text=self._text(caption.text)) for caption in captions)
        return tuple(dict.fromkeys(caption for caption in cleaned if caption.text))

    def _regions(self, regions: Iterable[Region]) -> Iterator[Region]:
        for region in regions:
            phrases = {code: text for code, phrase in region.phrases.items() if (text := self._text(phrase))}
            if phrases:
                yield replace(region, phrases=phrases)

    def _text(self, text: str) -> str:
        cleaned, used = clean_alt_text(text)
        self.latest.update(f"cleaned: {rule}" for rule in used)
        if not cleaned:
            self.latest["cleaned: nothing left"] += 1
        return cleaned
