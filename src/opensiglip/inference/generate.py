"""The one engine that writes texts, many at once, with a KV cache: greedily, by sampling, by beam search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.data.fields.captions import Ids
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.float64 import widen
from opensiglip.inference.box_grammar import BoxGrammar, State
from opensiglip.models.coca import Multimodal
from opensiglip.models.decoder import Decoder
from opensiglip.models.kv_cache import KVCache
from opensiglip.models.pali import PaliDecoder

TextDecoder = Decoder | Multimodal | PaliDecoder


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen, in the names of transformers' `generate`; by default the likeliest (greedy)."""

    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # sample from the likeliest so many; 0: from all
    top_p: float = 1.0  # sample from the likeliest that together have this probability
    max_new_tokens: int | None = None  # None: up to the decoder's length
    seed: int | None = None  # of sampling; None: torch's own generator

    def __post_init__(self) -> None:
        """Raises UserError on a value out of range."""
        most = self.max_new_tokens
        for ok, reason in (
            (self.num_beams >= 1, f"num_beams={self.num_beams} is below 1"),
            (self.temperature > 0, f"temperature={self.temperature} is not above 0; give do_sample=False for greedy"),
            (self.top_k >= 0, f"top_k={self.top_k} is below 0"),
            (0 < self.top_p <= 1, f"top_p={self.top_p} is not in (0, 1]"),
            (most is None or most >= 1, f"max_new_tokens={most} is below 1"),
            (not self.do_sample or self.num_beams == 1, "do_sample and num_beams exclude each other; give one"),
        ):
            if not ok:
                raise UserError(f"{reason}.")

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> "Decoding":
        """From keywords. Raises UserError on an unknown one."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise UserError(f"{name} is not an option of text generation; there are {', '.join(known)}.")
        return cls(**options)


GREEDY = Decoding()


@torch.no_grad()
def generate(
    decoder: TextDecoder,
    memory: Tensor,
    prefixes: Sequence[Ids],
    pipeline: TextPipeline,
    decoding: Decoding = GREEDY,
    *,
    each: int | None = None,
    uniforms: Tensor | None = None,
    grammar: BoxGrammar | None = None,
    owners: Sequence[int] | None = None,
    valid: Tensor | None = None,
) -> list[Ids]:
    """The text behind each prefix, without prefix and eos; it ends at eos or at the decoder's length.

    memory [B, N, M]: image tokens; valid [B, N] bool, where some are padding. Prefix i attends to image `owners[i]`, by
    default image i; an image's keys and values are made once. With a grammar only what it allows is chosen. A prefix
    that fills the decoder's length gives an empty text.

    With `each`, so many texts of every prefix, side by side, in place of what `decoding` chooses: spread evenly over
    all that the decoder could write (`spread`). With `uniforms` [P, K, L], numbers in [0, 1), K texts of every prefix:
    uniforms[p, k, i] tells where token i of text k falls. A prefix has the same texts whatever comes with it.
    """
    if decoding.num_beams > 1:
        found = beam_search(
            decoder, memory, prefixes, pipeline, decoding.num_beams,
            most=decoding.max_new_tokens, grammar=grammar, owners=owners, valid=valid,
        )  # fmt: skip
        return [some[0] if some else () for some in found]
    device, eos = memory.device, pipeline.policy.eos_id
    most = decoding.max_new_tokens or decoder.length
    limits = [min(decoder.length, len(prefix) + most) for prefix in prefixes]
    texts = [list(prefix) for prefix in prefixes]
    live = [row for row, text in enumerate(texts) if len(text) < limits[row]]
    if not live:
        return [() for _ in range(len(texts) * (each or 1))]
    generator = None if decoding.seed is None else torch.Generator(device).manual_seed(decoding.seed)
    cache, hidden = prefill(decoder, memory, texts, live, pipeline, owners, valid)
    codes = None  # [B, 1], or [B, tokens left]
    if uniforms is not None:
        each, codes = uniforms.shape[1], widen(uniforms)[live].flatten(0, 1)
    if each:
        copies = torch.arange(len(live), device=device).repeat_interleave(each)
        cache, hidden = cache.select(copies), hidden[copies]
        if codes is None:
            codes = widen((torch.arange(each, device=device) + 0.5) / each).repeat(len(live))[:, None]
        live = [each * row + copy for row in live for copy in range(each)]
        prefixes = [prefix for prefix in prefixes for _ in range(each)]
        limits = [limit for limit in limits for _ in range(each)]
        texts = [list(prefix) for prefix in prefixes]
    states = [State()] * len(live)
    alphabet = None if grammar is None else torch.from_numpy(grammar.alphabet).to(device)
    while True:
        logits = decoder.vocabulary(hidden, among=alphabet).float()
        if grammar is not None:
            logits = grammar.constrain(logits, states)
        if codes is not None:
            places, within = spread(logits, codes[:, 0].contiguous())
            codes = within[:, None] if uniforms is None else codes[:, 1:]
        else:
            places = sample(logits, decoding, generator) if decoding.do_sample else logits.argmax(-1)
        chosen = places.tolist()
        tokens = chosen if grammar is None else grammar.alphabet[chosen].tolist()
        for row, token in zip(live, tokens, strict=True):
            texts[row].append(token)
        kept = [p for p, row in enumerate(live) if tokens[p] != eos and len(texts[row]) < limits[row]]
        if grammar is not None:
            after = {place: grammar.after(states[place], tokens[place]) for place in kept}
            kept = [place for place in kept if not grammar.ended(after[place])]  # nothing but eos can follow
            states = [after[place] for place in kept]
        if not kept:
            break
        if len(kept) < len(live):  # finished rows leave the batch
            left = torch.tensor(kept, device=device)
            cache, live = cache.select(left), [live[place] for place in kept]
            codes = None if codes is None else codes[left]
        last = torch.tensor([[texts[row][-1]] for row in live], device=device)
        hidden = decoder.append(last, torch.tensor([len(texts[row]) for row in live], device=device), cache)[:, 0]
    written = [text[len(prefix) :] for text, prefix in zip(texts, prefixes, strict=True)]
    return [tuple(text[:-1] if text[-1:] == [eos] else text) for text in written]


def sample(logits: Tensor, decoding: Decoding, generator: torch.Generator | None = None) -> Tensor:
    """A place of each row [B] int64, drawn from softmax(logits / temperature), cut by top_k and then by top_p."""
    scores = logits / decoding.temperature
    if decoding.top_k:
        least = scores.topk(min(decoding.top_k, scores.shape[-1]), -1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    shares = scores.softmax(-1)
    if decoding.top_p < 1:
        largest, place = shares.sort(-1, descending=True)
        before = largest.cumsum(-1) - largest  # the likeliest one is always kept
        shares = shares.scatter(-1, place, largest.masked_fill(before >= decoding.top_p, 0))
    return torch.multinomial(shares, 1, generator=generator)[:, 0]


def spread(logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """A place of each row [B] int64: where its code in [0, 1) falls when probabilities lie end to end; and [B] how far
    into that place's share it falls, which is the code of the next token.

    Arithmetic sampling (arXiv:2210.15458): texts of codes at equal distances are a sample without a random number, in
    which every text has its probability's share of the codes, to one code.
    """
    ends = widen(logits).softmax(-1).cumsum(-1)
    ends = F.pad(ends / ends[:, -1:], (1, 0))
    codes = codes.clamp(max=1 - torch.finfo(ends.dtype).eps / 2)  # rounded to float32, a number may have become 1
    place = torch.searchsorted(ends, codes[:, None], right=True).clamp(max=logits.shape[-1])
    begin, end = ends.gather(1, place - 1), ends.gather(1, place)
    within = (codes[:, None] - begin) / (end - begin)
    return place[:, 0] - 1, within[:, 0].clamp(max=1 - torch.finfo(ends.dtype).eps)


@torch.no_grad()
def beam_search(
    decoder: TextDecoder,
    memory: Tensor,
    prefixes: Sequence[Ids],
    pipeline: TextPipeline,
    width: int,
    *,
    count: int = 1,
    most: int | None = None,
    end: int | None = None,
    forbidden: Sequence[int] = (),
    grammar: BoxGrammar | None = None,
    owners: Sequence[int] | None = None,
    valid: Tensor | None = None,
) -> list[list[Ids]]:
    """Behind each prefix the `count` texts of the highest mean log-likelihood a token that a beam of `width` meets.

    Best first; the end is counted and left out. A text has at most `most` tokens and ends with `end`, by default eos;
    ids that are `forbidden` have no likelihood. Dividing the sum by the length keeps a beam from writing short texts;
    the power 1 of the length is ours, the papers do not say. A prefix's search ends where none of its unfinished texts
    could overtake the last of its best: their sums can only fall, and none gets longer than the longest prefix allows.
    """
    device = memory.device
    end = pipeline.policy.eos_id if end is None else end
    best: list[list[tuple[float, Ids]]] = [[] for _ in prefixes]
    live = [row for row, prefix in enumerate(prefixes) if len(prefix) < decoder.length]
    if not live:
        return [[] for _ in prefixes]
    room = min(most or decoder.length, decoder.length - max(len(prefixes[row]) for row in live))
    cache, hidden = prefill(decoder, memory, prefixes, live, pipeline, owners, valid)
    sums = torch.zeros(len(live), 1, device=device)  # [prefixes, texts of each]
    texts = torch.zeros(len(live), 1, 0, dtype=torch.int64, device=device)
    states = [[State()] for _ in live]
    for size in range(1, room + 1):
        logits = decoder.vocabulary(hidden).float().log_softmax(-1)
        if forbidden:
            logits[:, list(forbidden)] = -torch.inf
        if grammar is not None:
            logits = grammar.constrain_vocabulary(logits, [state for some in states for state in some])
        ways = (sums[..., None] + logits.unflatten(0, sums.shape)).flatten(1)  # [prefixes, texts * V]
        before = sums.shape[1]
        # Each text has one way to end, so of twice `width` ways `width` go on.
        top, place = ways.topk(min(2 * width, ways.shape[1]), 1)
        row, token = place // logits.shape[-1], place % logits.shape[-1]
        longer = torch.cat([texts.gather(1, row[..., None].expand(-1, -1, size - 1)), token[..., None]], 2)
        ends = token == end
        for at, way in (ends if size < room else torch.ones_like(ends)).nonzero().tolist():
            if (mean := float(top[at, way]) / size) > -torch.inf:
                written = longer[at, way].tolist()
                some = best[live[at]]
                some.append((mean, tuple(written[:-1] if ends[at, way] else written)))
                some.sort(key=lambda scored: -scored[0])
                del some[count:]
        going = top.masked_fill(ends, -torch.inf).topk(min(width, top.shape[1]), 1)
        hopes = (going.values[:, 0] / room).tolist()
        least = [best[r][-1][0] if len(best[r]) == count else -torch.inf for r in live]
        kept = [at for at, hope in enumerate(hopes) if hope > least[at]]
        if not kept or size == room:
            break
        keep = torch.tensor(kept, device=device)
        sums, order = going.values[keep], going.indices[keep]
        texts = longer[keep].gather(1, order[..., None].expand(-1, -1, size))
        parents = row[keep].gather(1, order)
        cache = cache.select((keep[:, None] * before + parents).flatten())
        live = [live[at] for at in kept]
        if grammar is not None:
            states = [
                [grammar.after(states[at][p], t) if s > -torch.inf else State() for p, t, s in zip(*some, strict=True)]
                for at, some in zip(
                    kept, zip(parents.tolist(), texts[..., -1].tolist(), sums.tolist(), strict=True), strict=True
                )
            ]
        starts = torch.tensor([len(prefixes[r]) + size for r in live], device=device)
        last = texts[..., -1].flatten()[:, None]
        hidden = decoder.append(last, starts.repeat_interleave(sums.shape[1]), cache)[:, 0]
    return [[text for _, text in some] for some in best]


def prefill(
    decoder: TextDecoder,
    memory: Tensor,
    prefixes: Sequence[Sequence[int]],
    rows: Sequence[int],
    pipeline: TextPipeline,
    owners: Sequence[int] | None,
    valid: Tensor | None,
) -> tuple[KVCache, Tensor]:
    """The cache of the prefixes of those rows, shifted right behind pad, and the last hidden state [B, D] of each."""
    device, pad = memory.device, pipeline.policy.pad_id
    images = rows if owners is None else [owners[row] for row in rows]
    cache = decoder.start_cache(memory, torch.tensor(images, device=device), valid)
    texts = [prefixes[row] for row in rows]
    width = max(map(len, texts))
    inputs = torch.tensor([[pad, *text, *[pad] * (width - len(text))] for text in texts], device=device)
    last = torch.tensor([len(text) for text in texts], device=device)
    return cache, decoder.append(inputs, torch.zeros_like(last), cache, last)[:, 0]
