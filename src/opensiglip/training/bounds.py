"""Which numbers a run accepts: one table by keyword, for train's own and the recipes'."""

import math
from typing import Any

from opensiglip.errors import UserError

AT_LEAST: dict[str, float] = {
    "lora": 1,
    "vocabulary": 258,  # the 256 bytes, pad and eos
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "warmup": 0,
    "weight_decay": 0,
    "seed": 0,
    "workers": 0,
    "save_every": 1,
    "log_every": 1,
    "held_out": 0,
    "eval_every": 0,
    "resolution": 1,
    "length": 8,  # a task's prefix and some of its text
    "decoder_depth": 1,
    "decoder_width": 1,
    "parallel": 0,
    "distill_start": 0,
    "momentum": 0,
    "momentum_end": 0,
    "prototypes": 2,
    "queries": 1,
    "texts": 1,
    "caption_weight": 0,
    "contrastive_weight": 0,
}
MORE_THAN: dict[str, float] = {"epochs": 0, "lr": 0, "tower_lr": 0, "clip_norm": 0, "crop_area": 0, "mask": 0}
AT_MOST: dict[str, float] = {
    "seed": 2**32 - 1,
    "parallel": 1,
    "crop_area": 1,
    "mask": 1,
    "distill_start": 1,
    "momentum": 1,
    "momentum_end": 1,
}


def check_numbers(values: dict[str, Any]) -> None:
    """Raises UserError on a number out of its range; keywords that no table names pass."""
    for share in values.get("keep", ()):
        if not 0 < share < 1:
            raise UserError(f"--keep {share:g} is no share of training; give numbers between 0 and 1, such as 0.9.")
    for name, value in values.items():
        if not isinstance(value, int | float):
            continue
        bounds = []
        if name in AT_LEAST:
            bounds.append((f"at least {AT_LEAST[name]}", value >= AT_LEAST[name]))
        if name in MORE_THAN:
            bounds.append((f"more than {MORE_THAN[name]}", value > MORE_THAN[name]))
        if name in AT_MOST:
            bounds.append((f"at most {AT_MOST[name]}", value <= AT_MOST[name]))
        if bounds and not (math.isfinite(value) and all(kept for _, kept in bounds)):
            wanted = " and ".join(words for words, _ in bounds)
            raise UserError(f"--{name.replace('_', '-')} {value} is out of range; give a number of {wanted}.")
