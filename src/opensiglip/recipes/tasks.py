"""Tasks as text, mixed in one run: on CapPa's decoder, and on PaLI's encoder-decoder."""

from dataclasses import replace
from typing import Annotated

from opensiglip import data, objectives
from opensiglip.bounds import Bounds
from opensiglip.models.sizes import architecture
from opensiglip.recipes.recipe import Recipe

MIXTURE = "caption:4,aref:2,gcap:2,answer:2,question:1,detect:1,count:1"


def tasks(
    *,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    tasks: str = MIXTURE,
    texts: Annotated[int, Bounds(at_least=1, at_most=1024)] = 3,
    boxes: str = "y1 x1 y2 x2",
    decoder_depth: Annotated[int | None, Bounds(at_least=1, at_most=256)] = None,
    decoder_width: Annotated[int | None, Bounds(at_least=1, at_most=2**16)] = None,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
) -> Recipe:
    """Tasks: PaLI's unified text interface on CapPa's decoder; every task is a question and an answer.    (after PaLI)

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text: a question and its answer together.
        tasks: task names and weights, such as caption:4,aref:2; your own as FILE.py:NAME:2. Tasks: cap, caption,
            answer, question, count, ocr, aref, gcap, detect and segment.
        texts: largest number of sequences per image and visit.
        boxes: format of a box: as in LocCa, such as "y1 x1 y2 x2", or loc for PaliGemma's location tokens.
        decoder_depth: layers of the decoder; by default half the encoder's, rounded down.
        decoder_width: width of the decoder; by default that of the size.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop.
    """
    networks = architecture(
        size, resolution, length=length, decoder=True, decoder_depth=decoder_depth, decoder_width=decoder_width
    )
    weights, written = data.parse_tasks(tasks), data.BoxFormat.parse(boxes)
    frame = data.Frame(networks.resolution, crop_area)
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Mixture(weights, texts=texts, boxes=written)],
        objectives=[objectives.Caption()],
        tasks=tuple(weights),
        boxes=written,
    )


def pali(
    *,
    encoder: str | None = None,
    frozen: bool = True,
    size: str = "B/16",
    resolution: Annotated[int | None, Bounds(at_least=1, at_most=2**14)] = None,
    length: Annotated[int, Bounds(at_least=8, at_most=2**17)] = 64,
    tasks: str = MIXTURE,
    texts: Annotated[int, Bounds(at_least=1, at_most=1024)] = 3,
    boxes: str = "y1 x1 y2 x2",
    decoder_depth: Annotated[int | None, Bounds(at_least=1, at_most=256)] = None,
    decoder_width: Annotated[int | None, Bounds(at_least=1, at_most=2**16)] = None,
    crop_area: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0,
) -> Recipe:
    """PaLI: a T5 encoder-decoder reads image tokens and a prompt and answers in text.    (arXiv:2209.06794)

    Args:
        encoder: hub id or folder of a timm encoder; by default a SigLIP tower of `size`, whose weights --init should
            provide.
        frozen: do not train the image tower, as in PaLI's first stage.
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: side of the image in pixels; by default 256 patches (tiny: 64 pixels).
        length: tokens per text: a prompt, or an answer.
        tasks: task names and weights, such as caption:4,aref:2; your own as FILE.py:NAME:2. Tasks: cap, caption,
            answer, question, count, ocr, aref, gcap, detect and segment.
        texts: largest number of prompts per image and visit.
        boxes: format of a box: as in LocCa, such as "y1 x1 y2 x2", or loc for PaliGemma's location tokens.
        decoder_depth: layers of T5's encoder, and of its decoder; by default half the image tower's, rounded down.
        decoder_width: width of both; by default that of the size.
        crop_area: smallest fraction of the image area that a random crop keeps; 1 means no crop.
    """
    networks = architecture(
        size, resolution, length=length, decoder=True, decoder_depth=decoder_depth, decoder_width=decoder_width
    )
    networks = replace(networks, decoder=None, t5=networks.decoder, encoder=encoder, frozen=frozen)
    weights, written = data.parse_tasks(tasks), data.BoxFormat.parse(boxes)
    frame = data.Frame(networks.resolution, crop_area)
    return Recipe(
        networks,
        frame,
        fields=[data.Images(frame), data.Mixture(weights, texts=texts, boxes=written, paired=True)],
        objectives=[objectives.Answer()],
        tasks=tuple(weights),
        boxes=written,
    )
