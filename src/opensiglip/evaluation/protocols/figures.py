"""Published figures by protocol, in per cent, each with its source. Models are compared by width and tokens.

Sources: SigLIP 2 (arXiv:2502.14786), Tables 1 and 5; big_vision's README_siglip2.md; CapPa (arXiv:2306.07915), Table 6.
"""

from collections.abc import Sequence

from opensiglip.evaluation.protocols.protocol import Published

Row = tuple[str, int, int, tuple[float, ...]]

TABLE_1 = "SigLIP 2 (arXiv:2502.14786), Table 1"
TABLE_5 = "SigLIP 2 (arXiv:2502.14786), Table 5: a decoder trained from scratch on the frozen encoder"
README = "big_vision, README_siglip2.md"
CAPPA = "CapPa (arXiv:2306.07915), Table 6"

# Model, width, tokens: ImageNet; R@1 of text to image and image to text on COCO, Flickr30k and XM3600.
RETRIEVAL: list[Row] = [
    ("SigLIP 2 B/16-256", 768, 256, (79.1, 53.2, 69.7, 81.7, 94.4, 40.7, 51.0)),
    ("SigLIP 2 L/16-256", 1024, 256, (82.5, 54.7, 71.5, 84.1, 94.5, 46.5, 56.5)),
    ("SigLIP 2 So400m/14-224", 1152, 256, (83.2, 55.1, 71.5, 84.3, 94.6, 47.9, 57.5)),
    ("SigLIP 2 g/16-384", 1536, 576, (85.0, 56.1, 72.8, 86.0, 95.4, 48.6, 57.9)),
    ("SigLIP B/16-256", 768, 256, (76.7, 47.4, 65.1, 78.3, 91.1, 22.5, 29.9)),
    ("SigLIP L/16-256", 1024, 256, (80.5, 51.2, 69.6, 81.3, 92.0, 30.9, 40.1)),
    ("SigLIP So400m/14-224", 1152, 256, (82.2, 50.8, 69.0, 76.6, 90.7, 16.0, 22.8)),
    ("mSigLIP So400m/16-256", 1152, 256, (80.8, 49.4, 68.6, 80.0, 92.1, 50.0, 62.8)),
    ("CLIP B/16-224", 512, 196, (68.3, 33.1, 52.4, 62.1, 81.9)),
]

# Model, width, tokens: ImageNet; R@1 of text to image and image to text on COCO.
RELEASED: list[Row] = [
    ("SigLIP 2 B/32-256", 768, 64, (74.0, 47.2, 63.7)),
    ("SigLIP 2 B/16-224", 768, 196, (78.2, 52.1, 68.9)),
    ("SigLIP 2 B/16-384", 768, 576, (80.6, 54.6, 71.4)),
    ("SigLIP 2 B/16-512", 768, 1024, (81.2, 55.2, 71.2)),
    ("SigLIP 2 L/16-384", 1024, 576, (83.1, 55.3, 71.4)),
    ("SigLIP 2 L/16-512", 1024, 1024, (83.5, 55.2, 72.1)),
    ("SigLIP 2 So400m/14-384", 1152, 729, (84.1, 55.8, 71.7)),
    ("SigLIP 2 So400m/16-512", 1152, 1024, (84.3, 56.0, 71.3)),
    ("SigLIP 2 g/16-256", 1536, 256, (84.5, 55.7, 72.5)),
]

# Model, width, tokens: RefCOCO and RefCOCO+, each val, testA and testB; RefCOCOg val and test.
REFERRING: list[Row] = [
    ("SigLIP 2 B/16-256", 768, 256, (83.76, 86.21, 79.57, 74.26, 79.85, 65.83, 77.25, 77.83)),
    ("SigLIP 2 B/16-384", 768, 576, (85.18, 87.92, 80.53, 76.08, 82.17, 67.10, 79.08, 79.60)),
    ("SigLIP 2 L/16-256", 1024, 256, (86.04, 89.02, 81.85, 77.29, 83.28, 70.16, 80.11, 80.78)),
    ("SigLIP 2 L/16-384", 1024, 576, (87.28, 90.29, 82.85, 79.00, 85.00, 70.92, 81.84, 82.15)),
    ("SigLIP 2 So400m/14-224", 1152, 256, (86.42, 89.41, 82.48, 77.81, 84.36, 70.67, 80.83, 81.27)),
    ("SigLIP 2 So400m/14-384", 1152, 729, (87.88, 91.13, 83.59, 80.06, 86.30, 72.66, 82.68, 83.63)),
    ("SigLIP 2 g/16-256", 1536, 256, (87.31, 90.24, 83.25, 79.25, 85.23, 71.60, 81.48, 82.14)),
    ("SigLIP 2 g/16-384", 1536, 576, (88.45, 91.53, 84.95, 80.44, 87.09, 73.53, 83.12, 84.14)),
    ("SigLIP B/16-256", 768, 256, (64.05, 70.10, 57.89, 55.77, 63.57, 47.51, 59.06, 60.33)),
    ("SigLIP L/16-256", 1024, 256, (67.33, 72.40, 61.21, 59.57, 67.09, 51.08, 61.89, 62.90)),
    ("LocCa L/14-224", 1024, 256, (88.34, 91.20, 85.10, 79.39, 85.13, 72.61, 81.69, 82.64)),
    ("CapPa L/14-224", 1024, 256, (64.17, 69.90, 58.25, 56.14, 63.68, 48.18, 58.90, 59.91)),
    ("Cap L/14-224", 1024, 256, (60.64, 65.47, 56.17, 52.56, 58.32, 45.99, 56.75, 57.99)),
    ("CLIP L/14-224", 1024, 256, (65.21, 71.28, 58.17, 57.53, 66.44, 47.77, 59.32, 60.24)),
]

# Model, way of scoring: VG-Relation and VG-Attribution. All are B/16 at 224 pixels; the second half is by likelihood.
ARO = [
    ("CLIP* B/16-224", "similarity", 39.7, 53.2),
    ("CapPa B/16-224", "likelihood", 86.7, 85.7),
    ("Cap B/16-224", "likelihood", 86.6, 88.9),
]
BLIND = {"relation: macro_blind_likelihood": 0.862, "attribution: macro_blind_likelihood": 0.837}

RECALLS = ("retrieval: text_to_image_r1", "retrieval: image_to_text_r1")


def shares(names: tuple[str, ...], per_cent: tuple[float, ...]) -> dict[str, float]:
    """The figures by name, as shares."""
    return {name: round(value / 100, 4) for name, value in zip(names, per_cent, strict=True)}


def published(rows: Sequence[Row], names: tuple[str, ...], first: int, source: str) -> tuple[Published, ...]:
    """The columns from `first` on under these names, of the rows that have them."""
    last = first + len(names)
    return tuple(
        Published(model, width, tokens, shares(names, figures[first:last]), source)
        for model, width, tokens, figures in rows
        if len(figures) >= last
    )


ACCURACY, UNC = ("zeroshot: accuracy",), ("val: accuracy", "testA: accuracy", "testB: accuracy")
IMAGENET = published(RETRIEVAL, ACCURACY, 0, TABLE_1) + published(RELEASED, ACCURACY, 0, README)
COCO = published(RETRIEVAL, RECALLS, 1, TABLE_1) + published(RELEASED, RECALLS, 1, README)
FLICKR = published(RETRIEVAL, RECALLS, 3, TABLE_1)
XM3600 = published(RETRIEVAL, RECALLS, 5, TABLE_1)
REFCOCO = published(REFERRING, UNC, 0, TABLE_5)
REFCOCO_PLUS = published(REFERRING, UNC, 3, TABLE_5)
REFCOCOG = published(REFERRING, ("val: accuracy", "test: accuracy"), 6, TABLE_5)
ARO_FIGURES = tuple(
    Published(
        model,
        768,
        196,
        shares((f"relation: macro_{way}", f"attribution: macro_{way}"), (relation, attribution))
        | (BLIND if way == "likelihood" else {}),
        CAPPA,
    )
    for model, way, relation, attribution in ARO
)
