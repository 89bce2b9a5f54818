"""The parts of `opensiglip bench gpu` in the order of their importance, and the goals of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.goals import H200, Goal
from benchmarks.gpu_loader import loaded
from benchmarks.gpu_losses import decoder, pairwise, vocabulary_head
from benchmarks.gpu_setting import Found, Setting
from benchmarks.gpu_steps import Paces, full, larger, locca, memory, siglip

PARTS = ("siglip", "sigmoid", "head", "locca", "larger", "memory", "full", "loader", "decoder")
SIZES = ("B/16", "L/16")
VOCABULARIES = (32_000, 256_000)
PAIRS = 65_536
BATCH = 1024
TOKENS = 75_000  # of the captions of BATCH images, without padding


@dataclass(frozen=True)
class Part:
    """Figures that are measured together."""

    goals: dict[str, Goal]
    measure: Callable[[Found], None]


def parts_of(setting: Setting, kinds: Sequence[str]) -> list[Part]:
    """The parts of these kinds, in the order of PARTS."""
    first, (small, large), paces = setting.sizes[0], setting.vocabularies, Paces()
    tokens = max(1, TOKENS * setting.batch // BATCH)
    pairs, words = f"sigmoid, N = {setting.pairs}", f"head, V = {large}, {tokens} tokens"
    made = {
        "siglip": [
            Part(
                used(first, 0.45)
                | {
                    "images": Goal("G2", f"siglip {first}", "images/s", 2050),
                    "open_clip": Goal("G3", "siglip against open_clip's step", "times as fast", 1.2),
                    "compile": Goal("G3", "siglip compiled against eager", "times as fast", 1.3),
                },
                partial(siglip, setting, paces),
            )
        ],
        "sigmoid": [
            Part(
                {
                    "ms": Goal("G4", f"{pairs}: time", "ms", 50, at_most=True),
                    "memory": Goal("G4", f"{pairs}: memory", "GB", 1.5, at_most=True),
                },
                partial(pairwise, setting),
            )
        ],
        "head": [
            Part(
                {
                    "floor": Goal("G5", f"{words}: time", "times the products'", 1.35, at_most=True),
                    "memory": Goal("G5", f"{words}: memory beyond dW", "GiB", 1, at_most=True),
                    "liger-kernel": Goal("G5", f"{words}: time", "times liger-kernel's", 1.1, at_most=True),
                    "cut-cross-entropy": Goal("G5", f"{words}: time", "times cut-cross-entropy's", 1.1, at_most=True),
                },
                partial(vocabulary_head, setting, large, tokens),
            )
        ],
        "locca": [
            Part(
                {
                    "images": Goal("G2", f"siglip + locca {first}, V = {small}", "images/s", 1600),
                    "naive": Goal("G3", "siglip + locca against transformers and naive captions", "times as fast", 2.5),
                },
                partial(locca, setting, small, True),
            ),
            Part(
                {"images": Goal("G2", f"siglip + locca {first}, V = {large}", "images/s", 1200)},
                partial(locca, setting, large, False),
            ),
        ],
        "larger": [Part(used(size, 0.55), partial(larger, setting, size)) for size in setting.sizes[1:]],
        "memory": [
            Part(
                {
                    "head": Goal(
                        "G6",
                        f"siglip + locca {first}, V = {large}, batch {setting.batch}: memory of the head beyond dW",
                        "GiB",
                        1,
                        at_most=True,
                    ),
                    "step": Goal("", "memory of that step, with checkpointing, above weights and optimizer", "GiB"),
                },
                partial(memory, setting, large),
            )
        ],
        "full": [
            Part(
                {"images": Goal("G2", f"siglip2 {first} with distillation, V = {vocabulary}", "images/s", bound)},
                partial(full, setting, vocabulary, paces),
            )
            for vocabulary, bound in ((small, 650), (large, 570))
        ],
        "loader": [
            Part(
                {
                    "siglip": Goal("", "siglip: the loader's images/s", "times the step's", 1),
                    "siglip2": Goal("", "siglip2 with distillation: the loader's images/s", "times the step's", 1),
                },
                partial(loaded, setting, paces),
            )
        ],
        "decoder": [
            Part(
                {"padded": Goal("", "decoder and head against a padded pass for each text", "times as fast")},
                partial(decoder, setting, small),
            )
        ],
    }
    return [part for kind in PARTS if kind in kinds for part in made[kind]]


def has_goals(setting: Setting) -> bool:
    """Whether the goals are for this kind of device and these sizes."""
    given = setting.sizes, setting.batch, setting.vocabularies, setting.pairs
    return setting.place.type == "cuda" and given == (SIZES, BATCH, VOCABULARIES, PAIRS)


def used(size: str, bound: float) -> dict[str, Goal]:
    """Goals of a size's MFU."""
    return {
        "mfu": Goal("G1", f"MFU of siglip {size}, of this device's bf16 product", "", bound),
        "mfu, h200": Goal("G1", f"MFU of siglip {size}, of an H200's {H200 / 1e12:g} TFLOP/s", "", bound),
    }
