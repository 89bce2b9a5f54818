"""The losses and the decoder of `opensiglip bench gpu`, in bf16 where `train` computes so."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks import lm_head, sigmoid
from benchmarks.captions import texts
from benchmarks.decoder import PEER, packed_and_padded
from benchmarks.gpu_setting import OURS, UNKNOWN, Found, Setting, exactly
from benchmarks.gpu_steps import PARALLEL, beyond
from benchmarks.measure import Variant, agree
from benchmarks.peers import TASKS
from opensiglip.models.decoder import Decoder

CHECKED = 2048  # rows on which losses must agree before they are timed on all
OFF = 0.05  # by which gradients may differ from float32's, as a share of the largest
REFERENCE = "the plain loss in float32"
KERNELS = ("liger-kernel", "cut-cross-entropy")


def pairwise(setting: Setting, found: Found) -> None:
    """The sigmoid loss of embeddings as wide as the first size's."""
    width, place = setting.case(setting.sizes[0], 2).networks.embedding, setting.place
    losses, facts, variants = sigmoid.losses_of(width, place)[0], dict[str, dict[str, float]](), list[Variant]()
    few = sigmoid.Pairs.new(min(CHECKED, setting.pairs), width, place, bias=True)
    with exactly(place):
        right = few.seen(losses[sigmoid.PLAIN])
        for name, loss in losses.items():
            with found.leaving_out(name):
                facts[name] = {"off by": agree({name: few.seen(loss), REFERENCE: right}, REFERENCE, OFF)[name]}
    pairs = sigmoid.Pairs.new(setting.pairs, width, place, bias=True)
    for name in facts:
        variants += found.tried(name, partial(pairs.variant, name, losses[name], facts[name]))
    found.timed(setting, f"sigmoid {setting.pairs}", variants, "open_clip")
    if (ours := found.fastest(OURS)) is not None:
        found.values["ms"] = 1e3 * ours.seconds
        found.values["memory"] = UNKNOWN if ours.peak_mib is None else ours.peak_mib * 2**20 / 1e9


def vocabulary_head(setting: Setting, vocabulary: int, tokens: int, found: Found) -> None:
    """Output layer and cross-entropy of real tokens, as wide as the first size's decoder."""
    shape, place = setting.case(setting.sizes[0], vocabulary).networks.decoder, setting.place
    assert shape is not None
    heads, facts, variants = lm_head.heads_of(place), dict[str, dict[str, float]](), list[Variant]()
    few = lm_head.Tokens.new(vocabulary, min(CHECKED, tokens), shape.width, 1.0, place)
    with exactly(place):
        right = few.step(heads[lm_head.PLAIN])
    for name, head in heads.items():
        heads[name] = in_bf16(head, place, inputs=name in KERNELS)
        with found.leaving_out(name):
            facts[name] = {"off by": agree({name: few.step(heads[name]), REFERENCE: right}, REFERENCE, OFF)[name]}
    given = lm_head.Tokens.new(vocabulary, tokens, shape.width, 1.0, place)
    for name in facts:
        variants += found.tried(name, partial(given.variant, name, heads[name], facts[name]))
    found.timed(setting, f"head V {vocabulary} T {tokens}", variants, lm_head.PLAIN)
    ours = found.fastest(OURS)
    for kernel in KERNELS:
        if kernel not in heads:
            found.left_out[kernel] = "it is not installed" if place.type == "cuda" else "it needs a CUDA device"
        found.values[kernel] = found.ratio(ours, found.fastest(kernel), kernel)
    if ours is not None:
        found.values["floor"] = ours.over_floor or 0.0
        found.values["memory"] = beyond(ours.peak_mib, given.weight.numel())


def in_bf16(head: lm_head.Head, place: torch.device, *, inputs: bool) -> lm_head.Head:
    """A head under autocast; with `inputs` it is given bf16, and its gradients go on to the float32 weights."""

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(place.type, torch.bfloat16):
            return head(hidden.bfloat16(), weight.bfloat16(), targets) if inputs else head(hidden, weight, targets)

    return run


def decoder(setting: Setting, vocabulary: int, found: Found) -> None:
    """Decoder and head on three texts an image: packed, and a padded pass for each text."""
    networks, place = setting.case(setting.sizes[0], vocabulary).networks, setting.place
    shape, width, seen = networks.decoder, networks.vision.width, (networks.resolution // networks.patch) ** 2
    assert shape is not None
    reader = Decoder(shape, vocabulary, networks.length, width)
    torch.nn.init.normal_(reader.vocabulary.weight, std=shape.width**-0.5)
    image = torch.randn(setting.images, seen, width, device=place, requires_grad=True)
    drawn = texts(setting.images, TASKS, networks.length, vocabulary, parallel=PARALLEL)
    with exactly(place):
        checked = packed_and_padded(reader.to(place), image, drawn)

    def under_autocast(variant: Variant) -> Variant:
        def run() -> None:
            with torch.autocast(place.type, torch.bfloat16):
                variant.run()

        return replace(variant, run=run)

    variants = [some for one in checked for some in found.tried(one.name, partial(under_autocast, one))]
    found.timed(setting, f"decoder {setting.sizes[0]}, V {vocabulary}", variants, PEER)
    found.values["padded"] = found.ratio(found.fastest(PEER), found.fastest(OURS), PEER)
