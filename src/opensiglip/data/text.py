"""One text pipeline per checkpoint family: tokenizer, lower-casing, length, pad, eos and mask policy in one object.

Tokenising differently from a checkpoint's training is a costly silent mistake. The pipeline is therefore part of the
checkpoint and the only way to ids in this package. `data/tokenizers.py` reads and makes the tokenizers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from opensiglip.data import tokenizers as make
from opensiglip.data.text_cleaning import CLEANING, cleaned
from opensiglip.data.tokenizer_files import has_files
from opensiglip.data.tokenizers import FAMILIES
from opensiglip.errors import UserError, first_line


@dataclass(frozen=True)
class TextPolicy:
    """How a model family's texts become ids. SigLIP 2: lower-cased, 64 long, sticky eos, padded with 0, no mask.

    `mask` is "none": the towers attend to padding and pool the last position (recipes of SigLIP and SigLIP 2).
    `vocabulary` is how many rows a checkpoint's table of words has, where those are more than the tokenizer's entries.
    `clean` is what else becomes of a text for the text tower: "spaces" makes white space one space; "nothing", as
    SigLIP 2; "canonical", as SigLIP 1, also drops punctuation. The decoder's text always has its white space made one
    space and keeps its punctuation, which separates its phrases from its boxes.
    """

    length: int = 64
    lower: bool = True
    pad_id: int = 0
    eos_id: int = 1
    mask: str = "none"
    vocabulary: int = 0
    start_id: int | None = None  # of a tower that reads a start token first, as CLIP's does
    clean: str = "spaces"
    last_id: int | None = None  # of a tower that reads a class token at the last place, behind the padding


class TextPipeline:
    """Maps text to ids and back, as this checkpoint was trained."""

    def __init__(self, tokenizer: Any, policy: TextPolicy) -> None:
        """`tokenizer`: transformers', which must not do the canonical cleaning itself; or open_clip's, wrapped."""
        if policy.mask != "none":
            raise UserError(f"text policy mask={policy.mask!r} is not supported; SigLIP's towers take 'none'.")
        if policy.clean not in CLEANING:
            raise UserError(f"text policy clean={policy.clean!r} is unknown; give one of {', '.join(CLEANING)}.")
        self.tokenizer, self.policy = tokenizer, policy
        self._ids: Callable[[str], tuple[int, ...]] = lru_cache(maxsize=65_536)(make.encoder(tokenizer))

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves out its cache when it is sent to another process."""
        return TextPipeline, (self.tokenizer, self.policy)

    def __len__(self) -> int:
        """The size of the vocabulary, added tokens and unused rows included."""
        return max(len(self.tokenizer), self.policy.vocabulary)

    def ids(self, text: str) -> tuple[int, ...]:
        """The ids of a text for the decoder: no eos, no padding, no truncation."""
        return self._ids(cleaned(text, "spaces", lower=self.policy.lower))

    def fixed(self, text: str) -> np.ndarray:
        """ids [length] int64 for the text tower: cleaned, truncated, eos always kept ("sticky"), padded."""
        policy = self.policy
        start = [] if policy.start_id is None else [policy.start_id]
        ids = self._ids(cleaned(text, policy.clean, lower=policy.lower))
        last = [] if policy.last_id is None else [policy.last_id]
        row = [*start, *ids[: policy.length - 1 - len(start) - len(last)], policy.eos_id]
        row += [policy.pad_id] * (policy.length - len(row) - len(last))
        return np.array(row + last, dtype=np.int64)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, up to the first eos."""
        known = [int(i) for i in ids]
        if self.policy.eos_id in known:
            known = known[: known.index(self.policy.eos_id)]
        return make.decode(self.tokenizer, known)

    def canonical(self, text: str) -> str:
        """The normalised text for the decoder's tokenizer: lower-cased if the policy says so, with single blanks.

        Two texts with the same result have the same ids, so metrics compare normalised texts.
        """
        return make.normalized(self.tokenizer, cleaned(text, "spaces", lower=self.policy.lower))

    def with_tokens(self, tokens: Sequence[str]) -> "TextPipeline":
        """A pipeline that has each of `tokens` as one entry of its vocabulary, added where it is new."""
        if not tokens:
            return self
        make.add_tokens(self.tokenizer, tokens)
        return TextPipeline(self.tokenizer, self.policy)

    def with_length(self, length: int) -> "TextPipeline":
        """The same for a text tower of another length."""
        return TextPipeline(self.tokenizer, replace(self.policy, length=length))

    def within(self, vocabulary: int, name: str) -> "TextPipeline":
        """The pipeline for a table of `vocabulary` rows, some of which it may not use.

        Raises UserError if they are too few.
        """
        if len(self.tokenizer) > vocabulary:
            raise UserError(
                f"the tokenizer has {len(self.tokenizer)} entries, the checkpoint {name} has rows for {vocabulary}; "
                "give the tokenizer that it was trained with."
            )
        return TextPipeline(self.tokenizer, replace(self.policy, vocabulary=vocabulary))

    def plain(self) -> Any:
        """The transformers tokenizer that gives the ids of `fixed` when told to pad to the length and to truncate.

        If the policy ends or pads with other tokens than the tokenizer's own (open_clip's CoCa, for which plain
        transformers has no model), the tokenizer is returned unchanged. Raises UserError if none can be made.
        """
        policy, tokenizer = self.policy, self.tokenizer
        if tokenizer.pad_token_id not in (None, policy.pad_id) or tokenizer.eos_token_id not in (None, policy.eos_id):
            return tokenizer
        if make.agrees(tokenizer, policy.length, self.fixed):
            tokenizer.model_max_length, tokenizer.padding_side = policy.length, "right"
            return tokenizer
        made = make.exact(
            tokenizer,
            length=policy.length,
            lower=policy.lower,
            clean=policy.clean,
            start_id=policy.start_id,
            eos_id=policy.eos_id,
            pad_id=policy.pad_id,
        )
        if made is None or not make.agrees(made, policy.length, self.fixed):
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} can't be written so that plain transformers gives the ids "
                "that the model reads; give a fast one, with a tokenizer.json."
            )
        return made

    def agrees_in_open_clip(self, tokenizer: Any, texts: Sequence[str]) -> bool:
        """True if an open_clip tokenizer gives the ids of `fixed` for these texts."""
        return make.agrees_in_open_clip(tokenizer, texts, self.fixed)

    def save_pretrained(self, folder: str | Path) -> dict[str, Any]:
        """Write the tokenizer so that plain transformers gives the same ids; return the policy for opensiglip.json."""
        self.plain().save_pretrained(folder)
        return vars(self.policy).copy()

    @classmethod
    def from_pretrained(cls, folder: str | Path, policy: dict[str, Any]) -> "TextPipeline":
        """The inverse of `save_pretrained`."""
        try:
            known = TextPolicy(**policy)
            return cls(make.saved(folder, known.clean), known)
        except UserError:
            raise
        except Exception as error:  # the library raises a dozen types for one cause
            reason = first_line(error)
            raise UserError(f"the tokenizer in {folder} can't be read ({reason}); export the run again.") from error

    @classmethod
    def load(cls, name: str, length: int) -> "TextPipeline":
        """An existing tokenizer for a model to be trained: a folder, a tokenizer.json, or a hub id.

        As `around` says. Raises UserError if unreadable.
        """
        what = f"--tokenizer {name!r}"
        return cls.around(make.read(name, what), length, what)

    @classmethod
    def around(cls, tokenizer: Any, length: int, what: str = "the tokenizer") -> "TextPipeline":
        """Wrap a transformers tokenizer. Its own pad and eos tokens are used.

        If it has no pad token, or pads with its eos (GPT-2), a new one is added: with eos as padding its loss would be
        masked, and the end of a caption would never be learned. SigLIP's tokenizer, which pads with its eos 1, is not
        changed. Raises UserError without an eos.
        """
        tokenizer, clean = make.without_cleaning(tokenizer)
        eos_id = make.end(tokenizer, what)
        pad_id = tokenizer.pad_token_id
        if (pad_id, eos_id) not in FAMILIES and pad_id in (None, eos_id):
            pad_id = make.add_pad(tokenizer)
        make.pad_right(tokenizer, length, what)
        clean = clean or ("nothing" if (pad_id, eos_id) in FAMILIES else "spaces")
        return cls(tokenizer, TextPolicy(length, True, int(pad_id), eos_id, clean=clean))

    @classmethod
    def released(
        cls, place: str | Path, *, length: int, vocabulary: int, name: str, clean: str | None = None
    ) -> "TextPipeline | None":
        """The pipeline of a released checkpoint's text tower, or None if its folder has no tokenizer.

        SigLIP pads with its end token, 1; SigLIP 2 with 0, and lower-cases; both to exactly the text tower's length,
        without a mask (SigLIP_demo.ipynb; SigLIP2_demo.ipynb; recipes of big_vision: eos="sticky"). `clean`: as the
        checkpoint's config says it, where it does. Warns where the policy is unclear. Raises UserError on a tokenizer
        that can't be read, has no end token, or has more entries than the `vocabulary` rows of the checkpoint's table.
        """
        if not has_files(place):
            return None
        tokenizer, own = make.without_cleaning(make.read(str(place), f"the tokenizer of {name}"))
        eos_id = make.end(tokenizer, f"the tokenizer of {name}")
        pad_id = make.pad(tokenizer, eos_id)
        if (pad_id, eos_id) not in FAMILIES or tokenizer.pad_token is None:
            make.warn(
                f"{name}: texts end with {eos_id} and are padded with {pad_id}, as its tokenizer says; "
                "SigLIP's end and are padded with 1, SigLIP 2's end with 1 and are padded with 0."
            )
        make.pad_right(tokenizer, length, name, at=tokenizer.model_max_length)
        policy = TextPolicy(length, True, pad_id, eos_id, clean=clean or own or "nothing")
        return cls(tokenizer, policy).within(vocabulary, name)

    @classmethod
    def of_clip(cls, folder: str | Path, length: int, name: str) -> "TextPipeline":
        """The tokenizer of a transformers CLIP: its own start and end around each text, its case kept.

        Raises UserError where it can't be read or puts no one token behind a text.
        """
        tokenizer = make.read(str(folder), f"the tokenizer of {name}")
        bare, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
        start, end = whole[: len(whole) - len(bare) - 1], whole[-1]
        if whole != [*start, *bare, end] or len(start) > 1:
            raise UserError(
                f"the tokenizer of {name} encodes 'a' as {whole}; a CLIP tokenizer adds a start and an end."
            )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
        start_id = start[0] if start else None
        return cls(tokenizer, TextPolicy(length, False, pad, end, start_id=start_id, clean="nothing"))

    @classmethod
    def of_open_clip(cls, tokenizer: Any, name: str) -> "TextPipeline":
        """A tokenizer of open_clip's library. Raises UserError where its rows are not text, end and padding."""
        wrapped, length = make.OpenClipTokenizer(tokenizer), int(tokenizer.context_length)
        row, bare = tokenizer(["a"])[0].tolist(), wrapped.encode("a")
        at = next((at for at in range(2) if row[at : at + len(bare)] == bare), 0)
        start = row[0] if at else None
        last = row[-1] if row[-1] != row[-2] else None
        policy = TextPolicy(length, False, row[-2], row[at + len(bare)], start_id=start, clean="nothing", last_id=last)
        made = cls(wrapped, policy)
        for probe in ("a", "", "two Dogs,  on the grass!", "a word and one more " * length):
            if made.fixed(probe).tolist() != tokenizer([probe])[0].tolist():
                raise UserError(f"the tokenizer of {name} gives rows that are not start, text, end and padding.")
        return made

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int = 8192, length: int = 64, words: str = "") -> "TextPipeline":
        """A byte-level BPE of at most `size` entries, trained on `texts`; pad 0, eos 1, no <unk>.

        Each of `words` becomes one token if there is room. Deterministic for the same texts in the same order.
        """
        return cls(make.train(texts, size=size, length=length, words=words), TextPolicy(length))
