"""Greedy and beam search, many texts at once, with what was read remembered."""

from collections.abc import Sequence

import torch
from torch import Tensor

from opensiglip.data.fields.captions import Ids
from opensiglip.data.text import TextPipeline
from opensiglip.inference.box_grammar import BoxGrammar, State
from opensiglip.models.coca import Writer
from opensiglip.models.kv_cache import Cache


@torch.no_grad()
def greedy(
    decoder: Writer,
    memory: Tensor,
    prefixes: Sequence[Ids],
    pipeline: TextPipeline,
    grammar: BoxGrammar | None = None,
    *,
    owners: Sequence[int] | None = None,
    valid: Tensor | None = None,
) -> list[Ids]:
    """The likeliest next id, again and again, until eos or the decoder's length; without prefix and eos.

    memory [B, N, M]: image tokens; valid [B, N] bool, where some are padding. Prefix i reads image `owners[i]`, by
    default image i; an image's keys and values are made once. With a grammar only what it allows is chosen.
    """
    device, eos = memory.device, pipeline.policy.eos_id
    texts = [list(prefix) for prefix in prefixes]
    live = [row for row, text in enumerate(texts) if len(text) < decoder.length]
    if not live:
        return [()] * len(texts)
    whose = live if owners is None else [owners[row] for row in live]
    cache = decoder.remember(memory, torch.tensor(whose, device=device), valid)
    hidden = read(decoder, [texts[row] for row in live], pipeline, cache)
    states = [State()] * len(live)
    alphabet = None if grammar is None else torch.from_numpy(grammar.alphabet).to(device)
    while True:
        logits = decoder.vocabulary(hidden, among=alphabet).float()
        tokens = logits.argmax(-1).tolist() if grammar is None else choose(logits, states, grammar)
        for row, token in zip(live, tokens, strict=True):
            texts[row].append(token)
        kept = [p for p, row in enumerate(live) if tokens[p] != eos and len(texts[row]) < decoder.length]
        if grammar is not None:
            after = {place: grammar.after(states[place], tokens[place]) for place in kept}
            kept = [place for place in kept if not grammar.ended(after[place])]  # the rest is known
            states = [after[place] for place in kept]
        if not kept:
            break
        if len(kept) < len(live):  # finished rows leave the batch
            cache, live = cache.take(torch.tensor(kept, device=device)), [live[place] for place in kept]
        last = torch.tensor([[texts[row][-1]] for row in live], device=device)
        hidden = decoder.extend(last, torch.tensor([len(texts[row]) for row in live], device=device), cache)[:, 0]
    return [
        tuple(text[len(prefix) : -1] if text[-1:] == [eos] and len(text) > len(prefix) else text[len(prefix) :])
        for text, prefix in zip(texts, prefixes, strict=True)
    ]


def choose(logits: Tensor, states: Sequence[State], grammar: BoxGrammar) -> list[int]:
    """The likeliest id that the grammar allows in each state; logits [B, A] over its alphabet."""
    allowed = torch.from_numpy(grammar.allowed(states)).to(logits.device)
    best = logits.masked_fill(~allowed, -torch.inf).argmax(-1)
    return grammar.alphabet[best.cpu().numpy()].tolist()


@torch.no_grad()
def beam(
    decoder: Writer,
    memory: Tensor,
    prefixes: Sequence[Ids],
    pipeline: TextPipeline,
    width: int = 4,
    *,
    valid: Tensor | None = None,
) -> list[Ids]:
    """The text of the highest mean log-likelihood a token, eos counted, that a beam of `width` meets; without eos.

    memory [B, N, M]: image tokens of each of the B prefixes. Dividing the sum by the length keeps a beam from writing
    short texts; the power 1 of the length is ours, the papers do not say. An image's search ends where none of its
    unfinished texts could overtake its best: their sums can only fall, and none gets longer than the room that the
    longest prefix leaves.
    """
    device, eos = memory.device, pipeline.policy.eos_id
    longest = max(map(len, prefixes), default=0)
    room = decoder.length - longest
    best: list[tuple[float, Ids]] = [(-torch.inf, ())] * len(prefixes)
    if room < 1 or not prefixes:
        return [text for _, text in best]
    cache = decoder.remember(memory, valid=valid)
    hidden = read(decoder, prefixes, pipeline, cache)
    live = list(range(len(prefixes)))
    sums = torch.zeros(len(live), 1, device=device)  # [images, texts of each]
    texts = torch.zeros(len(live), 1, 0, dtype=torch.int64, device=device)
    for size in range(1, room + 1):
        logits = decoder.vocabulary(hidden).float().log_softmax(-1).unflatten(0, sums.shape)
        ways = (sums[..., None] + logits).flatten(1)  # [images, texts * V]
        before = sums.shape[1]
        # Each text has one way to end, so of twice `width` ways `width` go on.
        top, place = ways.topk(min(2 * width, ways.shape[1]), 1)
        row, token = place // logits.shape[-1], place % logits.shape[-1]
        longer = torch.cat([texts.gather(1, row[..., None].expand(-1, -1, size - 1)), token[..., None]], 2)
        ends = token == eos
        for at, way in (ends if size < room else torch.ones_like(ends)).nonzero().tolist():
            mean = float(top[at, way]) / size
            if mean > best[live[at]][0]:
                written = longer[at, way].tolist()
                best[live[at]] = mean, tuple(written[:-1] if ends[at, way] else written)
        going = top.masked_fill(ends, -torch.inf).topk(min(width, top.shape[1]), 1)
        hopes = (going.values[:, 0] / room).tolist()
        kept = [at for at, image in enumerate(live) if hopes[at] > best[image][0]]
        if not kept or size == room:
            break
        keep = torch.tensor(kept, device=device)
        sums, order = going.values[keep], going.indices[keep]
        texts = longer[keep].gather(1, order[..., None].expand(-1, -1, size))
        cache = cache.take((keep[:, None] * before + row[keep].gather(1, order)).flatten())
        live = [live[at] for at in kept]
        starts = torch.tensor([len(prefixes[image]) + size for image in live], device=device)
        last = texts[..., -1].flatten()[:, None]
        hidden = decoder.extend(last, starts.repeat_interleave(sums.shape[1]), cache)[:, 0]
    return [text for _, text in best]


def read(decoder: Writer, texts: Sequence[Sequence[int]], pipeline: TextPipeline, cache: Cache) -> Tensor:
    """The last hidden state [B, D] of each of the texts that rows begin with, shifted right behind pad."""
    device, pad = cache.layers[0].image.device, pipeline.policy.pad_id
    width = max(map(len, texts))
    inputs = torch.tensor([[pad, *text, *[pad] * (width - len(text))] for text in texts])
    starts = torch.zeros(len(texts), dtype=torch.int64, device=device)
    last = torch.tensor([len(text) for text in texts], device=device)
    return decoder.extend(inputs.to(device), starts, cache, last)[:, 0]
