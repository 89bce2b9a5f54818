"""Class names in words: canonical text, prompts, and the embedding of a class."""

import string
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import torch.nn.functional as F
from torch import Tensor

from opensiglip.inference.predictor import Predictor

Names = Mapping[str, str]  # language -> name; a bare name is taken for English
PUNCTUATION = str.maketrans("", "", string.punctuation)


def key(names: Names) -> str:
    """What tells one class from another: its English name, else its first."""
    return names.get("en") or next(iter(names.values()))


@cache
def templates(language: str) -> tuple[str, ...]:
    """big_vision's `clip_paper`: CLIP's 80 prompts and the bare name; in other languages the bare name alone.

    (big_vision evaluators/proj/image_text/prompt_engineering.py) Nobody has agreed on prompts in other languages.
    """
    if language != "en":
        return ("{}",)
    text = files(__package__).joinpath("clip_templates.txt").read_text(encoding="utf-8")
    return tuple(canonical(line, keep="{}") for line in text.splitlines())


def canonical(text: str, keep: str = "") -> str:
    """Lower-cased, "_" a space, ASCII punctuation dropped but for `keep`, blanks single.

    (big_vision evaluators/proj/image_text/prompt_engineering.py:94-112)
    """
    parts = text.replace("_", " ").split(keep) if keep else [text.replace("_", " ")]
    return " ".join(keep.join(part.translate(PUNCTUATION) for part in parts).lower().split())


def class_name(names: Names, language: str, *, raw: bool = False) -> str:
    """The name for prompts: the first between commas, canonical; or `raw`, as it stands. "" where there is none."""
    name = names.get(language, "")
    return name if raw else canonical(name, keep=",").split(",")[0].strip()


def class_embeddings(model: Predictor, names: Sequence[str], language: str) -> Tensor:
    """[C, D]: the mean of the unit embeddings of all prompts of a class, of unit length again.

    (big_vision evaluators/proj/image_text/discriminative_classifier.py:145-186)
    """
    prompts = templates(language)
    embedded = model.encode_texts([prompt.replace("{}", name) for name in names for prompt in prompts])
    return F.normalize(embedded.unflatten(0, (len(names), len(prompts))).mean(1), dim=-1, eps=1e-8)


def unusable_names(classes: Sequence[Names], language: str) -> str | None:
    """Which class names become one text or none by `class_name`, in a sentence; None where all differ.

    "C++", "C#" and "C" are all "c", and "?" is nothing: such classes can't be told apart by their texts.
    """
    by_text: dict[str, list[str]] = {}
    for names in classes:
        by_text.setdefault(class_name(names, language), []).append(names.get(language, key(names)))
    empty = by_text.pop("", [])
    same = [f"{' and '.join(map(repr, some))} are all {text!r}" for text, some in by_text.items() if len(some) > 1]
    parts = same + ([f"{' and '.join(map(repr, empty))} no text at all"] if empty else [])
    return f"without case and punctuation, class names of {language} are one: {'; '.join(parts)}" if parts else None
