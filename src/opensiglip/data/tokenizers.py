"""Tokenizers read, made and written, for `TextPipeline` alone: nothing else calls a tokenizer."""

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from opensiglip.data.sentencepiece import read_sentencepiece
from opensiglip.data.text_cleaning import CLEANERS, CLEANING, LOWER, ONE_SPACE
from opensiglip.data.tokenizer_files import EOS, check_ids, fetched, special_tokens
from opensiglip.errors import UserError, first_line
from opensiglip.json_file import load_json

PAD = "<pad>"
FAMILIES = {(1, 1): "SigLIP", (0, 1): "SigLIP 2"}  # (pad, eos)
CANONICAL = "SiglipTokenizer"  # the class whose slow form drops punctuation, the decoder's too
OFTEN = 1_000  # how often a word counts in training that is to be one token whatever the data holds
PROBES = (
    "a red apple",
    "A Red  Apple",
    "a red apple.\n",
    "",
    " ",
    "two dogs, on grass: 12 345",
    "</s> x",
    "word " * 99,
)


class OpenClipTokenizer:
    """What `TextPipeline` calls of a tokenizer, of one of open_clip's: its cleaning is part of `encode`."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.inner = tokenizer, getattr(tokenizer, "tokenizer", None)

    def __len__(self) -> int:
        return int(self.tokenizer.vocab_size) if self.inner is None else len(self.inner)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of a text alone."""
        if self.inner is None:
            return list(self.tokenizer.encode(text))
        return list(self.inner.encode(self.tokenizer.clean_fn(text), add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids."""
        return str((self.tokenizer if self.inner is None else self.inner).decode(list(ids)))


def read(name: str, what: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, a tokenizer.json or a hub id; SigLIP 1's without the sentencepiece library.

    Raises UserError, which names it as `what`.
    """
    path = Path(name)
    try:
        if path.is_file():
            check_ids(path)
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        if path.suffix == ".json":
            raise FileNotFoundError("there is no such file")
        folder = path if path.is_dir() else fetched(name)
        config = folder / "tokenizer_config.json"
        named = load_json(config) if config.is_file() else {}
        kind, pieces, whole = named.get("tokenizer_class"), folder / "spiece.model", folder / "tokenizer.json"
        if pieces.is_file() and (kind == CANONICAL or (kind is None and not whole.is_file())):
            return of_sentencepiece(pieces)
        check_ids(whole)
        if kind == CANONICAL:
            return PreTrainedTokenizerFast(tokenizer_file=str(whole), **special_tokens(named))
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen types for one cause
        reason = first_line(error)
        raise UserError(f"{what} can't be read ({reason}); give a folder or a hub id.") from error


def of_sentencepiece(path: Path) -> PreTrainedTokenizerFast:
    """SigLIP 1's tokenizer of its spiece.model, as the sentencepiece library computes it, without its cleaning.

    Raises UserError.
    """
    model = read_sentencepiece(path)
    inner = Tokenizer(models.Unigram(list(model.pieces), unk_id=model.unknown_id, byte_fallback=model.byte_fallback))
    compiled = [normalizers.Precompiled(model.characters)] if model.characters else []
    inner.normalizer = normalizers.Sequence([*compiled, normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=EOS, eos_token=EOS, unk_token=model.pieces[model.unknown_id][0]
    )


def without_cleaning(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, str | None]:
    """The tokenizer without the canonical cleaning that it does by itself, and "canonical" where its model has that.

    SigLIP 1's class, and what `exact` writes for it, drop punctuation of whatever text, the decoder's too.
    """
    if type(tokenizer).__name__ == CANONICAL:
        return of_sentencepiece(Path(str(getattr(tokenizer, "vocab_file", "")))), "canonical"
    if not tokenizer.is_fast:
        return tokenizer, None
    backend, steps = json.loads(tokenizer.backend_tokenizer.to_str()), _json(CLEANERS["canonical", True])
    found = (backend["normalizer"] or {}).get("normalizers", [])
    if found[: len(steps)] == steps:
        backend["normalizer"]["normalizers"] = found[len(steps) :]
        inner = Tokenizer.from_str(json.dumps(backend))
        special = {name: getattr(tokenizer, name) for name in ("pad_token", "eos_token", "unk_token")}
        return PreTrainedTokenizerFast(tokenizer_object=inner, **special), "canonical"
    unigram = isinstance(tokenizer.backend_tokenizer.model, models.Unigram)
    siglip = (tokenizer.pad_token_id, tokenizer.eos_token_id) == (1, 1)
    return tokenizer, "canonical" if unigram and siglip else None


def end(tokenizer: PreTrainedTokenizerBase, what: str) -> int:
    """The id that ends a text, made the tokenizer's own where it only has a token of such a name.

    Raises UserError where it has none.
    """
    known = tokenizer.get_vocab()
    if tokenizer.eos_token is None:
        named = next((token for token in ("<eos>", EOS, "<|endoftext|>") if token in known), None)
        if named is None:
            raise UserError(f"{what} has no end-of-text token; add one named </s>.")
        tokenizer.eos_token = named
    return int(known[str(tokenizer.eos_token)])


def pad(tokenizer: PreTrainedTokenizerBase, eos_id: int) -> int:
    """The id that pads: the tokenizer's own, else that of a token of such a name, else its end."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return int(tokenizer.get_vocab().get(PAD, eos_id))


def add_pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of a pad token that is not the end, added where there is none."""
    if PAD in tokenizer.get_vocab():
        tokenizer.pad_token = PAD
    else:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return int(tokenizer.pad_token_id)


def pad_right(tokenizer: PreTrainedTokenizerBase, length: int, what: str, at: int = 0) -> None:
    """Pad on the right to the text tower's length from now on.

    Warns where the tokenizer pads on the left or, with `at` the length that a released one pads to, to another length.
    """
    if tokenizer.padding_side != "right" or (0 < at < 100_000 and at != length):
        to = f" to {at}" if at else ""
        warn(
            f"{what}: its tokenizer pads on the {tokenizer.padding_side}{to}; the text tower was trained on "
            f"{length} tokens padded on the right, which is what is done."
        )
    tokenizer.model_max_length, tokenizer.padding_side = length, "right"


def warn(sentence: str) -> None:
    """A warning to whoever opened the checkpoint."""
    warnings.warn(sentence, stacklevel=3)


def encoder(tokenizer: Any) -> Callable[[str], tuple[int, ...]]:
    """A cleaned text's ids, without special tokens: "</s>" in a caption is four letters, not its end."""
    if not tokenizer.is_fast:
        return lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))
    # A copy of the Rust tokenizer: ten times as quick as the wrapper, and calls on the wrapper can't change it.
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    fast.no_padding()
    fast.no_truncation()
    fast.encode_special_tokens = True
    return lambda text: tuple(fast.encode(text, add_special_tokens=False).ids)


def normalized(tokenizer: Any, text: str) -> str:
    """What a tokenizer makes of a text before it splits it, in blanks."""
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    known = text if normalizer is None else normalizer.normalize_str(text)
    return str(known).replace("\u2581", " ").strip()  # SentencePiece writes blanks so


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, special tokens left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def add_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Make each of `tokens` one entry of the vocabulary."""
    tokenizer.add_tokens([AddedToken(token, lstrip=True, normalized=False) for token in tokens])


def agrees(tokenizer: Any, length: int, fixed: Callable[[str], np.ndarray]) -> bool:
    """Does plain transformers, told to pad to the length and to truncate, give the ids of `fixed`?"""
    given = tokenizer(list(PROBES), padding="max_length", max_length=length, truncation=True)["input_ids"]
    return all(list(row) == fixed(text).tolist() for row, text in zip(given, PROBES, strict=True))


def agrees_in_open_clip(tokenizer: Any, texts: Sequence[str], fixed: Callable[[str], np.ndarray]) -> bool:
    """Does a tokenizer of open_clip's give the ids of `fixed`? It joins several blanks, so `texts` have single ones."""
    rows = tokenizer(list(texts)).tolist()
    return all(row == fixed(text).tolist() for row, text in zip(rows, texts, strict=True))


def exact(
    tokenizer: Any, *, length: int, lower: bool, clean: str, start_id: int | None, eos_id: int, pad_id: int
) -> PreTrainedTokenizerFast | None:
    """A tokenizer that cleans, ends and pads every text by itself; None where a slow one can't be made to."""
    if not tokenizer.is_fast:
        return None
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    steps = [*([LOWER] if lower else []), *CLEANING[clean]]
    backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])
    start, eos, pad = (None if i is None else backend.id_to_token(i) for i in (start_id, eos_id, pad_id))
    front = f"{start} " if start else ""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{front}$A {eos}",
        pair=f"{front}$A {eos} $B {eos}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (start, eos) if token],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        eos_token=AddedToken(eos, special=True),
        unk_token=tokenizer.unk_token,
        model_max_length=length,
        padding_side="right",
        model_input_names=["input_ids"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def saved(folder: str | Path, clean: str) -> PreTrainedTokenizerBase:
    """The tokenizer that `TextPipeline.save_pretrained` wrote, without the cleaning that the decoder's text lacks."""
    check_ids(Path(folder) / "tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return without_cleaning(tokenizer)[0] if clean == "canonical" else tokenizer


def train(texts: Iterable[str], *, size: int, length: int, words: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as `TextPipeline.train` describes it."""
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=AddedToken(EOS, special=True),
        model_max_length=length,
        padding_side="right",
        model_input_names=["input_ids"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def _json(normalizer: normalizers.Sequence) -> list[dict[str, Any]]:
    """The steps of a normalizer as tokenizer.json has them."""
    bare = Tokenizer(models.BPE())
    bare.normalizer = normalizer
    steps: list[dict[str, Any]] = json.loads(bare.to_str())["normalizer"]["normalizers"]
    return steps
