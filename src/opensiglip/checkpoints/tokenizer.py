"""How a released checkpoint's text tower was fed: its tokenizer, made exact, and the policy that its config implies.

SigLIP pads with its end token, 1; SigLIP 2 with 0, and lower-cases; both to exactly the text tower's length, without a
mask.    (SigLIP_demo.ipynb; SigLIP2_demo.ipynb; recipes of big_vision: eos="sticky")
"""

import warnings
from dataclasses import replace
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from opensiglip.data.text import LOWER, ONE_SPACE, TextPipeline, TextPolicy
from opensiglip.errors import UserError

FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "tokenizer.model")
FAMILIES = {(1, 1): "SigLIP", (0, 1): "SigLIP 2"}  # (pad, eos)


def text_of(folder: str | Path, *, length: int, vocabulary: int, name: str) -> TextPipeline | None:
    """The pipeline of a checkpoint's folder, or None where it has no tokenizer.

    Warns where the policy is unclear. Raises UserError on a tokenizer that can't be read, has no end token, or has more
    entries than the `vocabulary` rows of the checkpoint's table.
    """
    path = Path(folder)
    if path.is_dir() and not any((path / file).is_file() for file in FILES):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the library raises a dozen types for one cause
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"the tokenizer of {name} can't be read ({reason}); fetch it again.") from error
    known = tokenizer.get_vocab()
    eos = tokenizer.eos_token or next((token for token in ("<eos>", "</s>") if token in known), None)
    if eos is None:
        raise UserError(f"the tokenizer of {name} has no end-of-text token; add one named </s>.")
    pad = tokenizer.pad_token or next((token for token in ("<pad>",) if token in known), eos)
    policy = TextPolicy(length, True, int(known[str(pad)]), int(known[str(eos)]))
    if (policy.pad_id, policy.eos_id) not in FAMILIES or tokenizer.pad_token is None:
        warnings.warn(
            f"{name}: texts end with {policy.eos_id} and are padded with {policy.pad_id}, as its tokenizer says; "
            "SigLIP's end and are padded with 1, SigLIP 2's end with 1 and are padded with 0.",
            stacklevel=2,
        )
    limit = tokenizer.model_max_length
    if tokenizer.padding_side != "right" or (limit < 100_000 and limit != length):
        warnings.warn(
            f"{name}: its tokenizer pads on the {tokenizer.padding_side} to {limit}; the text tower was trained on "
            f"{length} tokens padded on the right, which is what is done.",
            stacklevel=2,
        )
    return within(TextPipeline(_exact(tokenizer, str(pad), str(eos), length), policy), vocabulary, name)


def within(pipeline: TextPipeline, vocabulary: int, name: str) -> TextPipeline:
    """The pipeline for a table of `vocabulary` rows, some of which it may not use. Raises UserError if they are few."""
    if len(pipeline.tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has {len(pipeline.tokenizer)} entries, the checkpoint {name} has rows for {vocabulary}; "
            "give the tokenizer that it was trained with."
        )
    return TextPipeline(pipeline.tokenizer, replace(pipeline.policy, vocabulary=vocabulary))


def _exact(tokenizer: PreTrainedTokenizerBase, pad: str, eos: str, length: int) -> PreTrainedTokenizerBase:
    """A tokenizer that plain transformers, too, lets lower-case, end and pad every text as the text tower has it."""
    if not tokenizer.is_fast:  # sentencepiece: SigLIP's own class does it all
        tokenizer.model_max_length, tokenizer.padding_side = length, "right"
        return tokenizer
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    cleaned = [ONE_SPACE, LOWER, *([backend.normalizer] if backend.normalizer is not None else [])]
    backend.normalizer = normalizers.Sequence(cleaned)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, backend.token_to_id(eos))]
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
