"""From sources to batches. The names that a recipe is written with are here, each imported when first used."""

from typing import Any

from opensiglip.lazy import lookup

HOMES = {
    "BUDGETS": "fields.naflex",
    "BoxFormat": "boxes",
    "Captions": "fields.captions",
    "Field": "fields.field",
    "Frame": "fields.frame",
    "GrowingFrame": "fields.frame",
    "HardTexts": "fields.hard_texts",
    "KeptTokens": "fields.kept_tokens",
    "PatchMask": "fields.views",
    "Images": "fields.field",
    "Mixture": "tasks.mixture",
    "NaFlex": "fields.naflex",
    "References": "fields.references",
    "RegionTexts": "fields.region_texts",
    "SecondTexts": "fields.field",
    "Texts": "fields.field",
    "Views": "fields.views",
    "parse_tasks": "tasks",
}


def __getattr__(name: str) -> Any:
    return lookup(__name__, HOMES, name)
