"""One text pipeline per checkpoint family: tokenizer, lower-casing, length, pad, eos and mask policy in one object.

The field's most costly silent mistake is to tokenise otherwise than the checkpoint was trained, so the pipeline travels
with the checkpoint and is the only way to ids in this package.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from opensiglip.errors import UserError

PAD, EOS = "<pad>", "</s>"
# Of the tokenizers library, not Python's own: `str.lower` ends a Greek word otherwise. Applying them twice is once.
ONE_SPACE, LOWER = normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()
OFTEN = 1_000  # how often a word counts in training that is to be one token whatever the data holds


@dataclass(frozen=True)
class TextPolicy:
    """How a family's text becomes ids. SigLIP 2: lower-cased, 64 long, sticky eos, padded with 0, no mask.

    `mask` is "none": the towers attend to padding and pool the last position (recipes of SigLIP and SigLIP 2).
    `vocabulary` is how many rows a checkpoint's table of words has, where those are more than the tokenizer's entries.
    """

    length: int = 64
    lower: bool = True
    pad_id: int = 0
    eos_id: int = 1
    mask: str = "none"
    vocabulary: int = 0
    start_id: int | None = None  # of a tower that reads a start token first, as CLIP's does


class OpenClipTokenizer:
    """What `TextPipeline` calls of a tokenizer, of one of open_clip's: its cleaning is part of `encode`."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        inner = getattr(self.tokenizer, "tokenizer", None)
        return int(self.tokenizer.vocab_size) if inner is None else len(inner)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of a text alone."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return list(self.tokenizer.encode(text))
        return list(inner.encode(self.tokenizer.clean_fn(text), add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids."""
        inner = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        return str(inner.decode(list(ids)))


class TextPipeline:
    """Text to ids and back, the one way this checkpoint knows."""

    def __init__(self, tokenizer: Any, policy: TextPolicy) -> None:
        if policy.mask != "none":
            raise UserError(f"text policy mask={policy.mask!r} is not supported; SigLIP's towers take 'none'.")
        self.tokenizer, self.policy = tokenizer, policy
        # A copy of the Rust tokenizer: ten times as quick as the wrapper, and calls on the wrapper can't change it.
        self._fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else None
        if self._fast is not None:
            self._fast.no_padding()
            self._fast.no_truncation()
            self._fast.encode_special_tokens = True  # "</s>" in a caption is four letters, not its end
        self._ids = lru_cache(maxsize=65_536)(self._encode)

    def __reduce__(self) -> tuple[Any, ...]:
        """Into another process it goes without what it remembers."""
        return TextPipeline, (self.tokenizer, self.policy)

    def __len__(self) -> int:
        """The size of the vocabulary, added tokens and unused rows included."""
        return max(len(self.tokenizer), self.policy.vocabulary)

    def ids(self, text: str) -> tuple[int, ...]:
        """The text's ids alone: no eos, no padding, no truncation."""
        return self._ids(text)

    def fixed(self, text: str) -> np.ndarray:
        """ids [length] int64 for the text tower: truncated, eos always kept ("sticky"), padded."""
        policy = self.policy
        start = [] if policy.start_id is None else [policy.start_id]
        ids = [*start, *self.ids(text)[: policy.length - 1 - len(start)], policy.eos_id]
        return np.array(ids + [policy.pad_id] * (policy.length - len(ids)), dtype=np.int64)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, up to the first eos."""
        known = [int(i) for i in ids]
        if self.policy.eos_id in known:
            known = known[: known.index(self.policy.eos_id)]
        return str(self.tokenizer.decode(known, skip_special_tokens=True)).strip()

    def with_tokens(self, tokens: Sequence[str]) -> "TextPipeline":
        """A pipeline that has each of `tokens` as one entry of its vocabulary, added where it is new."""
        if not tokens:
            return self
        self.tokenizer.add_tokens([AddedToken(token, lstrip=True, normalized=False) for token in tokens])
        return TextPipeline(self.tokenizer, self.policy)

    def save_pretrained(self, folder: str | Path) -> dict[str, Any]:
        """Write the tokenizer so that plain transformers gives the same ids; return the policy for the sidecar."""
        self.tokenizer.save_pretrained(folder)
        return vars(self.policy).copy()

    @classmethod
    def from_pretrained(cls, folder: str | Path, policy: dict[str, Any]) -> "TextPipeline":
        """The inverse of `save_pretrained`."""
        try:
            tokenizer, known = AutoTokenizer.from_pretrained(folder), TextPolicy(**policy)
        except Exception as error:  # the library raises a dozen types for one cause
            raise UserError(f"the tokenizer in {folder} can't be read ({error}); export the run again.") from error
        return cls(tokenizer, known)

    @classmethod
    def load(cls, name: str, length: int) -> "TextPipeline":
        """An existing tokenizer: a folder, a tokenizer.json, or a hub id.

        Its own pad and eos tokens are used. Where it has no pad token (GPT-2), a new one is added: were eos to serve as
        padding, its loss would be masked away and the end of a caption never learned. Raises UserError if unreadable.
        """
        path = Path(name)
        try:
            if path.suffix == ".json" and not path.is_file():
                raise FileNotFoundError("there is no such file")
            if path.is_file():
                tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_file=str(path))
            else:
                tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # the library raises a dozen types for one cause
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"--tokenizer {name!r} can't be read ({reason}); give a folder or a hub id.") from error
        return cls.around(tokenizer, length, f"--tokenizer {name!r}")

    @classmethod
    def around(cls, tokenizer: PreTrainedTokenizerBase, length: int, what: str = "the tokenizer") -> "TextPipeline":
        """A transformers tokenizer at hand, given a pad token where it has none. Raises UserError without an eos."""
        vocabulary = tokenizer.get_vocab()
        if tokenizer.eos_token is None:
            named = next((token for token in ("<eos>", "</s>", "<|endoftext|>") if token in vocabulary), None)
            if named is None:
                raise UserError(f"{what} has no end-of-text token; add one named </s>.")
            tokenizer.eos_token = named
        if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            if PAD in vocabulary:
                tokenizer.pad_token = PAD
            else:
                tokenizer.add_special_tokens({"pad_token": PAD})
        tokenizer.model_max_length, tokenizer.padding_side = length, "right"
        return cls(tokenizer, TextPolicy(length, True, int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)))

    @classmethod
    def train(cls, texts: Iterable[str], *, size: int = 8192, length: int = 64, words: str = "") -> "TextPipeline":
        """A byte-level BPE of at most `size` entries, trained on `texts`; pad 0, eos 1, no <unk>.

        Each of `words` becomes one token if there is room. Deterministic for the same texts in the same order.
        """
        tokenizer = Tokenizer(models.BPE())
        # One leading space whether or not the text has one, so that a word is one token wherever it stands.
        tokenizer.normalizer = normalizers.Sequence(
            [ONE_SPACE, LOWER, normalizers.NFKC(), LOWER, normalizers.Strip(), normalizers.Prepend(" ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(chain(repeat(words, OFTEN), texts), trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, 1)]
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=PAD,
            eos_token=AddedToken(EOS, special=True),
            model_max_length=length,
            padding_side="right",
            model_input_names=["input_ids"],
            clean_up_tokenization_spaces=False,
            split_special_tokens=True,
        )
        return cls(fast, TextPolicy(length))

    @classmethod
    def of_clip(cls, folder: str | Path, length: int, name: str) -> "TextPipeline":
        """The tokenizer of a transformers CLIP: its own start and end around each text, its case kept.

        Raises UserError where it can't be read or puts no one token behind a text.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            bare = tokenizer.encode("a", add_special_tokens=False)
            whole = tokenizer.encode("a")
        except Exception as error:  # the library raises a dozen types for one cause
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"the tokenizer of {name} can't be read ({reason}); fetch it again.") from error
        start, end = whole[: len(whole) - len(bare) - 1], whole[-1]
        if whole != [*start, *bare, end] or len(start) > 1:
            raise UserError(f"the tokenizer of {name} makes of 'a' the ids {whole}; a CLIP's has a start and an end.")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
        return cls(tokenizer, TextPolicy(length, False, pad, end, start_id=start[0] if start else None))

    @classmethod
    def of_open_clip(cls, tokenizer: Any, name: str) -> "TextPipeline":
        """A tokenizer of open_clip's library. Raises UserError where its rows are not text, end and padding."""
        wrapped = OpenClipTokenizer(tokenizer)
        length = int(tokenizer.context_length)
        row, bare = tokenizer(["a"])[0].tolist(), wrapped.encode("a")
        at = next((at for at in range(2) if row[at : at + len(bare)] == bare), 0)
        start = row[0] if at else None
        made = cls(wrapped, TextPolicy(length, False, row[-1], row[at + len(bare)], start_id=start))
        for probe in ("a", "", "two Dogs, on the grass!", "a word and one more " * length):
            if made.fixed(probe).tolist() != tokenizer([probe])[0].tolist():
                raise UserError(f"the tokenizer of {name} makes rows that are not start, text, end and padding.")
        return made

    def _encode(self, text: str) -> tuple[int, ...]:
        cleaned = ONE_SPACE.normalize_str(LOWER.normalize_str(text) if self.policy.lower else text)
        if self._fast is not None:
            return tuple(self._fast.encode(cleaned, add_special_tokens=False).ids)
        return tuple(self.tokenizer.encode(cleaned, add_special_tokens=False))
