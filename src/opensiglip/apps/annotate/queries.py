"""What an open-vocabulary detector is asked for on an image: the n-grams of its texts, and a list of categories.

After OWL-ST (Scaling Open-Vocabulary Object Detection, Sec. 3.1, A.2, A.3), whose boxes SigLIP 2 cites for its own. The
word lists are ours: the paper names only examples of generic words. PaLI's categories, LocCa's, are not public.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opensiglip.errors import UserError

LONGEST, MOST = 10, 300  # words of an n-gram, n-grams of an image    (OWL-ST, A.2)
MAX_BYTES, MAX_CATEGORIES = 1_000_000, 5_000  # of a file of categories
WORD = re.compile(r"\w+(?:['’-]\w+)*")

# Words that say nothing of what is to be seen: how the picture was made, kept or sold.
GENERIC_WORDS = """
    background buy clipart collage com copyright download drawing facebook file free gif graphic hd http https
    illustration illustrations image images img instagram jpeg jpg logo online page pdf photo photograph photographs
    photography photos pic pics picture pictures pinterest png portrait print render resolution royalty-free sale
    screenshot shutterstock stock svg thumbnail twitter unsplash untitled upload vector video view wallpaper webp www
    youtube
"""
COMMON_WORDS = """
    a about above across after again against all along also am an and another any are around as at away back be
    because been before behind being below beneath beside besides between beyond both but by can could did do does doing
    down during each either else every few for from further had has have having he her here hers herself him himself his
    how i if in inside into is it it's its itself just like me more most my myself near neither next no nor not now of
    off on once one only onto or other our ours ourselves out outside over own same she should so some such than that
    that's the their theirs them themselves then there these they this those through till to together too toward towards
    under until up upon us very via was we were what when where which while who whom whose why will with within without
    would you your yours yourself yourselves
"""

GENERIC, STOP_WORDS = frozenset(GENERIC_WORDS.split()), frozenset(COMMON_WORDS.split())


@dataclass(frozen=True)
class Query:
    """A text to look for, and where it comes from."""

    text: str
    source: str  # "ngram" or "category"


def ngrams(texts: Iterable[str], longest: int = LONGEST, most: int = MOST) -> list[str]:
    """All runs of 1 to `longest` words of each text, in lower case, each once, short ones first; at most `most`.

    Left out are those with a generic word in them, and those of stop words alone (OWL-ST, A.2). Short ones first is
    ours: the bound then cuts the long ones, which are many and rarely names.
    """
    found: dict[str, int] = {}
    for text in texts:
        words = WORD.findall(text.lower())
        for start in range(len(words)):
            for size in range(1, min(longest, len(words) - start) + 1):
                gram = words[start : start + size]
                if gram[-1] in GENERIC:
                    break  # every longer one from here has it too
                if not STOP_WORDS.issuperset(gram):
                    found.setdefault(" ".join(gram), size)
    return sorted(found, key=lambda gram: found[gram])[:most]  # stable: texts' order among those of a length


def ask_for(texts: Iterable[str], categories: Iterable[str], most: int = MOST) -> list[Query]:
    """The n-grams of the texts, then the categories that are not among them."""
    asked = {gram: Query(gram, "ngram") for gram in ngrams(texts, most=most)}
    for category in categories:
        asked.setdefault(category, Query(category, "category"))
    return list(asked.values())


def read_categories(name: str) -> list[str]:
    """ "coco": the 80 names of COCO as torchvision has them; "none"; else a text file with a name a line.

    Raises UserError if there is no such file, or too much in it.
    """
    if name == "none":
        return []
    if name == "coco":
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        known = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        return [category for category in known if category not in ("__background__", "N/A")]
    path = Path(name)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"--categories {name} is over {MAX_BYTES // 1_000_000} MB; give a text file with one name per line."
            )
        lines = path.read_text(encoding="utf-8").lower().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"--categories {name} can't be read ({reason}); give coco, none, or a text file with one name per line."
        ) from None
    names = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if not names or len(names) > MAX_CATEGORIES:
        raise UserError(f"--categories {name} has {len(names)} names; give 1 to {MAX_CATEGORIES}, one per line.")
    return names
