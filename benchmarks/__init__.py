"""`opensiglip bench`: the measurements behind this project's claims on speed, each beside its peers."""

from collections.abc import Callable
from importlib import import_module

from opensiglip.errors import UserError

BENCHES = ("sigmoid", "lm-head", "decoder", "step", "input", "ranks", "attention", "decoding", "embed", "memory")


def find(name: str) -> Callable[..., None]:
    """The function of one measurement; its keywords are the flags. Raises UserError on an unknown name."""
    if name not in BENCHES:
        raise UserError(f"`opensiglip bench` measures one of: {', '.join(BENCHES)}.")
    function: Callable[..., None] = import_module(f"benchmarks.{name.replace('-', '_')}").bench
    return function
