"""Decoding boxes: all phrases together with a KV cache, against the plain loop."""

from pathlib import Path

import torch

from benchmarks.measure import Variant, compare, positive, start
from benchmarks.report import report
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.captions import task_words
from opensiglip.data.text import TextPipeline
from opensiglip.inference.box_grammar import BoxGrammar, State
from opensiglip.inference.generate import generate
from opensiglip.models.decoder import Decoder
from opensiglip.models.sizes import Shape

PEER = "one by one"


def bench(
    phrases: int = 128,
    images: int = 16,
    tokens: int = 256,
    width: int = 128,
    depth: int = 3,
    prefix: int = 5,
    rounds: int = 3,
    out: Path = Path("runs/bench"),
) -> None:
    """Boxes decoded together with a KV cache, against the plain loop; agreement is checked first.

    The peer takes one phrase after the other and reads image and text anew for each token, along the same grammar. By
    default eight phrases an image, and 256 image tokens, as in the papers.

    Args:
        phrases: number of phrases to find a box for.
        images: number of images that the phrases refer to.
        tokens: tokens per image.
        width: width of the decoder.
        depth: layers of the decoder.
        prefix: tokens of a phrase with its task.
        rounds: measurements of each variant, taken in turn; the median is reported.
        out: folder for the JSON and the plot.
    """
    positive(phrases=phrases, images=images, tokens=tokens, width=width, depth=depth, prefix=prefix, rounds=rounds)
    place = start("cpu")
    torch.manual_seed(0)
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
        for owner, phrase in zip(owners, asked, strict=True):
            text, state = list(phrase), State()
            while len(text) < decoder.length:
                inputs = torch.tensor([[pipeline.policy.pad_id, *text]])
                places, none = torch.arange(inputs.shape[1])[None], torch.zeros_like(inputs)
                hidden = decoder(inputs, places, none, none.bool(), memory[owner : owner + 1])
                logits = grammar.constrain(decoder.vocabulary(hidden[:, -1])[:, alphabet], [state])
                token = int(grammar.alphabet[int(logits.argmax())])
                if token == eos:
                    break
                state = grammar.after(state, token)
                text.append(token)
            answers.append(tuple(text[len(phrase) :]))
        return answers

    def together() -> list[tuple[int, ...]]:
        return generate(decoder, memory, asked, pipeline, grammar=grammar, owners=owners)

    if one_by_one() != together():
        raise RuntimeError("the two ways write other boxes")
    variants = [Variant(PEER, one_by_one, items=phrases), Variant("opensiglip", together, items=phrases)]
    report("decoding", compare(f"{phrases} boxes", variants, PEER, place, rounds, torch.float32), out, place)
