"""Texts against references: CIDEr-D, BLEU-4, exact match, word accuracy, token F1.

CIDEr-D and BLEU-4 are written out here: equal to pycocoevalcap's on the same tokens to 1e-15, in 0.7 and 0.8 of its
time (5,000 images of 5 references), and the library is 101 MB, most of it Java.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # CIDEr-D's: how fast a text of another length than the reference loses
# Scripts that put no spaces between words: each letter stands for one.
UNSPACED = (("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u3040", "\u30ff"), ("\u3400", "\u9fff"))

NGram = tuple[Hashable, ...]
NGrams = Counter[NGram]


def words(text: str) -> list[str]:
    """The text in lower case, punctuation dropped, split at spaces; where there are none, at letters.

    Ours, for all languages alike: COCO's figures are over the Penn Treebank's tokens, which differ a little in English.
    """
    letters = []
    for letter in unicodedata.normalize("NFC", text.lower()):
        kind = unicodedata.category(letter)
        if kind[0] in "PSZ" or kind == "Cc":
            letters.append(" ")
        elif any(low <= letter <= high for low, high in UNSPACED):
            letters.append(f" {letter} ")
        else:
            letters.append(letter)
    return "".join(letters).split()


def exact_match(text: str, reference: str) -> float:
    """1 if the two are the same words, whatever their case and punctuation, else 0."""
    return float(words(text) == words(reference))


def word_accuracy(text: str, reference: str) -> float:
    """1 less the word error rate, at least 0: edits that make one of the other, over the reference's words."""
    written, right = words(text), words(reference)
    row = list(range(len(right) + 1))
    for i, word in enumerate(written, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return max(0.0, 1 - row[-1] / max(1, len(right)))


def token_f1(tokens: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, each as often as it occurs.    (SQuAD, arXiv:1606.05250)"""
    shared = (Counter(tokens) & Counter(reference)).total()
    return 2 * shared / (len(tokens) + len(reference)) if shared else 0.0


def n_grams(tokens: Sequence[Hashable]) -> NGrams:
    """How often each n-gram of 1 to 4 tokens occurs."""
    return Counter(tuple(tokens[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(tokens) - n + 1))


class Weighed(NamedTuple):
    """A text's n-grams as CIDEr compares them."""

    weights: list[dict[NGram, float]]  # count times rarity, for n = 1 to 4
    norms: list[float]
    length: int  # the number of its token pairs, as pycocoevalcap has it (cider/cider_scorer.py)

    @classmethod
    def of(cls, counts: NGrams, rarity: Callable[[NGram], float]) -> "Weighed":
        """`rarity`: the logarithm of the images' number over that of the images whose references have the n-gram."""
        weights: list[dict[NGram, float]] = [{} for _ in range(LONGEST)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * rarity(gram)
        norms = [math.sqrt(sum(x * x for x in some.values())) for some in weights]
        return cls(weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2))

    def likeness(self, reference: "Weighed") -> float:
        """CIDEr-D against one reference, 10 at best.    (Vedantam et al., arXiv:1411.5726, Sec. 6)"""
        likeness = 0.0
        for ours, theirs, norm, other in zip(self.weights, reference.weights, self.norms, reference.norms, strict=True):
            dot = sum(min(x, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, x in ours.items())
            likeness += dot / (norm * other) if norm * other else dot
        return 10 / LONGEST * math.exp(-((self.length - reference.length) ** 2) / (2 * SIGMA**2)) * likeness


def cider_d(texts: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of each text, 10 at best; their mean is the corpus's.

    Tokens of one text and of one or more references an image. An n-gram weighs the less, the more images' references
    have it, so a score hangs on the set.
    """
    grams = [[n_grams(one) for one in some] for some in references]
    images = Counter(gram for some in grams for gram in {gram for one in some for gram in one})
    total = math.log(len(references)) if references else 0.0

    def weigh(counts: NGrams) -> Weighed:
        return Weighed.of(counts, lambda gram: total - math.log(max(1, images[gram])))

    scores = []
    for text, some in zip(texts, grams, strict=True):
        ours = weigh(n_grams(text))
        scores.append(sum(ours.likeness(weigh(one)) for one in some) / len(some))
    return scores


def bleu_counts(text: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """What BLEU-4 of a corpus sums up: n-grams found and n-grams written, for n = 1 to 4; length; closest reference's.

    An n-gram is found at most as often as the reference that has it most often has it.
    """
    ours, most = n_grams(text), NGrams()
    for reference in references:
        most |= n_grams(reference)
    found = ours & most
    hits = [sum(count for gram, count in found.items() if len(gram) == n) for n in range(1, LONGEST + 1)]
    written = [max(0, len(text) - n + 1) for n in range(1, LONGEST + 1)]
    closest = min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]
    return [*hits, *written, len(text), closest]


def bleu4(counts: np.ndarray) -> np.ndarray:
    """BLEU-4 of corpora [...], 1 at best, from sums [..., 10] of `bleu_counts`.    (Papineni et al., ACL 2002)

    The two small numbers against division by zero are pycocoevalcap's (bleu/bleu_scorer.py).
    """
    counts = np.asarray(counts, float)
    found, written, length, closest = counts[..., :4], counts[..., 4:8], counts[..., 8], counts[..., 9]
    precision = np.prod((found + 1e-15) / (written + 1e-9), axis=-1) ** (1 / LONGEST)
    ratio = (length + 1e-15) / (closest + 1e-9)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))
