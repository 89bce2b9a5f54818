"""Which values of attributes the images of a source show, by zero-shot classification."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import exp

import torch
from torch import Tensor

from opensiglip.data.example import Example, Source, reason_of
from opensiglip.data.weighting.attributes import Pattern, Shown, column, numbered
from opensiglip.data.weighting.lexicon import Lexicon
from opensiglip.errors import UserError
from opensiglip.evaluation.class_names import class_embeddings
from opensiglip.inference.predictor import Predictor
from opensiglip.progress import progress

BATCH = 64  # rows that are read and embedded at a time
OTHER = "thing"  # in the prompts of an image that shows none of the values (ours)
LANGUAGE = "en"

Classes = Mapping[str, tuple[list[str], Tensor]]  # by attribute: its values, and embeddings [values + 1, D]


def read_by_model(
    source: Source, attributes: Sequence[str], lexicon: Lexicon, model: Predictor, confidence: float
) -> Shown:
    """The values of every row: of its columns, as `read_attributes`; where it has none, of its image by the model.

    The classes of an attribute are its values, by the first English word of each one's list, and "thing", with
    big_vision's prompts (`class_embeddings`). A row shows the likeliest value where the softmax gives it `confidence`
    at least; else it shows none, which is unknown. Raises UserError.
    """
    if not model.has_text or model.logit_scale is None:
        raise UserError(f"--attributes-by {model.name} has no text tower; give a SigLIP or CLIP model.")
    classes = {name: _classes(lexicon, name, model) for name in attributes}
    why = "the column `groups` has no such entry, and no image is as sure as --confidence asks; give less"
    with progress(total=len(source), desc="classify", unit="row") as bar:
        return numbered(source, attributes, _read(source, classes, model, confidence), why, bar)


def _classes(lexicon: Lexicon, attribute: str, model: Predictor) -> tuple[list[str], Tensor]:
    names = {
        value: texts[LANGUAGE][0] for value, texts in lexicon.lists.get(attribute, {}).items() if texts.get(LANGUAGE)
    }
    if len(names) < 2:
        raise UserError(
            f"--attributes-by: there is no list of two values of {attribute!r} with English words; there are lists of "
            f"{', '.join(lexicon.attributes)}; give --lexicon."
        )
    return list(names), class_embeddings(model, [*names.values(), OTHER], LANGUAGE)


def _read(
    source: Source, classes: Classes, model: Predictor, confidence: float
) -> Iterator[tuple[list[Pattern], Counter[str]]]:
    for first in range(0, len(source), BATCH):
        examples, broken = list[Example | None](), Counter[str]()
        for row in range(first, min(first + BATCH, len(source))):
            try:
                examples.append(source.example(row))
            except Exception as error:
                broken[reason_of(error)] += 1
                examples.append(None)
        patterns = iter(_patterns([one for one in examples if one is not None], classes, model, confidence))
        yield [frozenset() if one is None else next(patterns) for one in examples], broken


def _patterns(examples: Sequence[Example], classes: Classes, model: Predictor, confidence: float) -> list[Pattern]:
    if not examples:
        return []
    images = model.embed_framed(model.framed([example.image for example in examples]))
    given = [{name: column(example, name) for name in classes} for example in examples]
    found = [{(name, value) for name, values in one.items() for value in values or ()} for one in given]
    for name, (values, texts) in classes.items():
        best = (exp(model.logit_scale or 0.0) * images @ texts.cpu().T).softmax(-1).max(-1)
        sure = (best.values >= confidence) & (best.indices < len(values))
        for at in torch.nonzero(sure)[:, 0].tolist():
            if given[at][name] is None:
                found[at].add((name, values[int(best.indices[at])]))
    return [frozenset(one) for one in found]
