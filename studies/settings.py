"""Flags that the runs of several studies share."""

from typing import Any

EASY = "scenes:drawings=24,objects={},languages=en"
# Of every run: images so small that sixteen patches cover them, and no room for longer texts than the scenes have.
SMALL: dict[str, Any] = {"size": "tiny", "resolution": 32, "length": 24, "batch_size": 32, "lr": 0.001}
LARGER: dict[str, Any] = SMALL | {"resolution": 64, "batch_size": 256}
AUTO = {"logit_bias": "auto"}  # what a batch of 32 needs in place of -10
TINIER: dict[str, Any] = SMALL | {"size": "64x2x128x2/8", "lr": 0.002}  # a step of 25 ms on one core
MUON: dict[str, Any] = {"optimizer": "muon", "lr": 0.002}  # as in `make train`: fewer steps to the same loss
# No data workers, which would compete for the one core.
QUICK: dict[str, Any] = TINIER | MUON | {"lr": 0.004, "precision": "fp32", "workers": 0}
