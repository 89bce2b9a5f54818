"""Terms of papers' losses, each imported when first used."""

from typing import Any

from opensiglip.lazy import lookup

HOMES = {
    "Answer": "captioning",
    "Caption": "captioning",
    "Continue": "captioning",
    "Distil": "distil",
    "HardNegatives": "contrastive",
    "LocalToGlobal": "distillation",
    "MaskedPatches": "distillation",
    "Momentum": "base",
    "RegionPairs": "region_pairs",
    "SelfCritical": "self_critical",
    "Sigmoid": "contrastive",
    "Softmax": "contrastive",
    "TokenClassification": "token_classification",
}


def __getattr__(name: str) -> Any:
    return lookup(__name__, HOMES, name)
