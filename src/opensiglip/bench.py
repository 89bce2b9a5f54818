"""`opensiglip bench`: the measurements behind this project's claims on speed, each a ratio against a named peer."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.models.attention import attention


def bench_attention(images: int = 64, tokens: int = 64, heads: int = 4, width: int = 128, rounds: int = 9) -> None:
    """Our attention against torch's fused kernel, forward and backward, bfloat16; agreement is checked first.

    Args:
        images: of a batch.
        tokens: of an image.
        heads: of the attention.
        width: of the tokens.
        rounds: of each variant, in turn; the median counts.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(images, heads, tokens, width // heads, generator=generator) for _ in range(3)]
    inputs = [part.to(device, torch.bfloat16).requires_grad_() for part in parts]
    variants: dict[str, Callable[..., Tensor]] = {"torch sdpa": F.scaled_dot_product_attention, "opensiglip": attention}
    outputs = [variant(*inputs).float() for variant in variants.values()]
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 2):
        for name, variant in variants.items():
            began = time.perf_counter()
            for _ in range(5):
                variant(*inputs).sum().backward()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:  # two rounds of warm-up
                times[name].append((time.perf_counter() - began) / 5)
    report(times, peer="torch sdpa", largest_difference=float((outputs[0] - outputs[1]).detach().abs().max()))


def bench_memory(steps: int = 6) -> None:
    """A training step on CPU with freed memory kept (as `train` does) against glibc's default; a process each.

    Args:
        steps: timed in each process after three of warm-up; the median counts.
    """
    times: dict[str, list[float]] = {}
    for name, keep in (("glibc default", "0"), ("opensiglip", "1")):
        command = [sys.executable, "-c", STEPS.format(keep=keep, steps=steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        times[name] = json.loads(done.stdout.splitlines()[-1])
    report(times, peer="glibc default")


def bench_decoding(
    phrases: int = 128,
    images: int = 16,
    tokens: int = 256,
    width: int = 128,
    depth: int = 3,
    prefix: int = 5,
    rounds: int = 3,
) -> None:
    """Boxes decoded together with what was read remembered, against the plain loop; agreement is checked first.

    The peer takes one phrase after the other and reads image and text anew for each token, along the same grammar. By
    default eight phrases an image, about as many as RefCOCO has, and 256 image tokens, as in the papers.

    Args:
        phrases: to find a box for.
        images: that the phrases are about.
        tokens: of an image.
        width: of the decoder.
        depth: of the decoder.
        prefix: tokens of a phrase with its task.
        rounds: of each variant, in turn; the median counts.
    """
    from opensiglip.data.boxes import BoxFormat
    from opensiglip.data.captions import task_words
    from opensiglip.data.text import TextPipeline
    from opensiglip.decoding import BoxGrammar, State, choose, greedy
    from opensiglip.models.decoder import Decoder
    from opensiglip.models.sizes import Shape

    torch.manual_seed(0)
    torch.set_num_threads(1)
    boxes = BoxFormat()
    pipeline = TextPipeline.train(["a red fox"], words=task_words(("aref",), boxes))
    grammar, eos = BoxGrammar(pipeline, boxes), pipeline.policy.eos_id
    decoder = Decoder(Shape(width, depth, 4 * width, max(1, width // 32)), len(pipeline), pipeline.policy.length, width)
    torch.nn.init.normal_(decoder.vocabulary.weight, std=width**-0.5)
    memory = torch.randn(images, tokens, width)
    owners = [number % images for number in range(phrases)]
    asked = [tuple(torch.randint(2, len(pipeline), (prefix,)).tolist()) for _ in owners]
    alphabet = torch.from_numpy(grammar.alphabet)

    @torch.no_grad()
    def one_by_one() -> list[tuple[int, ...]]:
        answers = []
        for owner, start in zip(owners, asked, strict=True):
            text, state = list(start), State()
            while len(text) < decoder.length:
                inputs = torch.tensor([[pipeline.policy.pad_id, *text]])
                places, none = torch.arange(inputs.shape[1])[None], torch.zeros_like(inputs)
                hidden = decoder(inputs, places, none, none.bool(), memory[owner : owner + 1])
                (token,) = choose(decoder.vocabulary(hidden[:, -1])[:, alphabet], [state], grammar)
                if token == eos:
                    break
                state = grammar.after(state, token)
                text.append(token)
            answers.append(tuple(text[len(start) :]))
        return answers

    def together() -> list[tuple[int, ...]]:
        return greedy(decoder, memory, asked, pipeline, grammar, owners=owners)

    variants = {"one by one": one_by_one, "opensiglip": together}
    if one_by_one() != together():
        raise RuntimeError("the two ways write other boxes")
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            began = time.process_time()  # of one thread, so that what else the machine does counts less
            variant()
            times[name].append(time.process_time() - began)
    report(times, peer="one by one", boxes=phrases)


STEPS = """
import json, time, torch
from opensiglip.data.loader import Plan, Steps, to_device
from opensiglip.data.sources import open_source
from opensiglip.data.text import TextPipeline
from opensiglip.models.model import Model
from opensiglip.recipes import siglip2
from opensiglip.train.learner import Learner, denominators
from opensiglip.train.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
torch.manual_seed(0)
recipe, source = siglip2(size="tiny"), open_source("scenes", pixels=64)
pipeline = TextPipeline.train(source.texts())
batch = to_device(Steps(Plan([source], recipe.frame, recipe.fields, pipeline, 64, 0))[0].parts[0], torch.device("cpu"))
learner = Learner(Model.new(recipe.architecture, len(pipeline)), recipe.objectives)
live, times = denominators(learner, [batch]).float(), []
for step in range(3 + {steps}):
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = learner(batch, live).losses["loss"]
    loss.backward()
    learner.zero_grad()
    times.append(time.perf_counter() - began)
print(json.dumps(times[3:]))
"""


def report(times: dict[str, list[float]], peer: str, **facts: float) -> None:
    """Print a table of medians and ratios, then the same as one line of JSON."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'':<16}{'median ms':>12}{'speed':>8}")
    for name, median in medians.items():
        print(f"{name:<16}{median * 1e3:>12.2f}{medians[peer] / median:>7.2f}x")
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"milliseconds": {k: round(v * 1e3, 3) for k, v in medians.items()}, **facts, **machine}))
