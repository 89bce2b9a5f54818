"""The curator: of each super-batch, what the step trains on, and what became of its sources and languages."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

from opensiglip.data.fields.curation import ORIGIN, ROW, SCORER
from opensiglip.data.fields.field import Field
from opensiglip.data.loader import to_device
from opensiglip.distributed import dealt, first_ranks, gathered, world
from opensiglip.float64 import widen, widest
from opensiglip.models.model import Model
from opensiglip.objectives.base import Encoded, unit
from opensiglip.training.curation.selection import SIGNS, Pairs, Scores, blocked_sampling, noise
from opensiglip.training.curation.tally import Tally
from opensiglip.training.learner import Learner
from opensiglip.training.log import Row, finite
from opensiglip.types import Batch

QUANTILES = (0.1, 0.5, 0.9)


@dataclass
class Curator:
    """Chooses by the learner's weights, the seed and the step alone: the same on every number of ranks and parts."""

    method: str
    keep: int  # examples that a step trains on, over all ranks
    chunks: int
    seed: int
    fields: list[Field]  # what it reads of a visit, beside the recipe's
    names: dict[str, tuple[str, ...]]  # of `Origins`
    autocast: Callable[[], AbstractContextManager[Any]]  # of the learner's scores
    tally: Tally  # of each example's visits and selections
    resolution: int | None = None  # pixels of a side at which the learner scores images; None: those of the step
    interpolation: str = "bilinear"  # by which they are resized
    seen: Counter[str] = field(default_factory=Counter)  # examples of all super-batches, by "kind/name"
    chosen: Counter[str] = field(default_factory=Counter)  # of them, those trained on

    @torch.no_grad()
    def choose(
        self, learner: Learner, parts: Sequence[Batch], step: int, device: torch.device
    ) -> tuple[list[Batch], Row]:
        """This rank's parts of what is chosen from all ranks' `parts`, as many of them; and numbers for the log.

        Parts come and go as the loader makes them, with pixels as uint8, on the device; with the reference's rows
        (`Reference.embed`) where the method asks for its loss.
        """
        raw = [{name: values.to(device, non_blocking=True) for name, values in part.items()} for part in parts]
        scored = SIGNS[self.method][0] != 0
        if scored:
            learner.eval()  # scores are of the model that serves: no dropout
        scores = self.scores(learner.model, raw)
        if scored:
            learner.train()
        valid = scores.valid
        draws = noise(self.seed, step, min(self.chunks, self.keep), len(valid)).to(device, widest(device))
        own = scores.own()
        chosen = first_ranks(blocked_sampling(own, scores.others, valid, self.keep, draws))
        whole = {name: torch.cat([part[name] for part in raw]) for name in raw[0]}
        self.tally.add(gathered(whole[f"{ORIGIN}{ROW}"]), own, valid, chosen)
        row = self._numbers(scores, own, chosen) | self._origins(whole, chosen)
        first = world()[0] * len(whole["has_text"])  # of this rank's examples, among all
        owners = chosen // len(whole["has_text"])
        mine = chosen[owners == world()[0]] - first
        ours = (ORIGIN, SCORER)  # that training has no use for
        kept = {name: dealt(v[mine], owners.tolist()) for name, v in whole.items() if not name.startswith(ours)}
        size = len(kept["has_text"]) // len(parts)
        return [{name: v[at * size : (at + 1) * size] for name, v in kept.items()} for at in range(len(parts))], row

    def state(self) -> dict[str, dict[str, int]]:
        """What a checkpoint keeps."""
        return {"seen": dict(self.seen), "chosen": dict(self.chosen)}

    def restore(self, state: dict[str, dict[str, int]]) -> None:
        """Go on from `state`."""
        self.seen, self.chosen = Counter(state["seen"]), Counter(state["chosen"])

    def shares(self) -> dict[str, dict[str, dict[str, float]]]:
        """By kind and name, the share of the data that was seen and of what was chosen of it."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for kind, names in self.names.items():
            totals = {what: sum(counts[f"{kind}/{name}"] for name in names) for what, counts in self._counts().items()}
            found[kind] = {
                name: {what: counts[f"{kind}/{name}"] / max(1, totals[what]) for what, counts in self._counts().items()}
                for name in names
                if self.seen[f"{kind}/{name}"]
            }
        return found

    def _counts(self) -> dict[str, Counter[str]]:
        return {"seen": self.seen, "chosen": self.chosen}

    def scores(self, model: Model, parts: Sequence[Batch], join: Callable[[Tensor], Tensor] = gathered) -> Scores:
        """Of all pairs of `parts`, joined over ranks: on the device, with the reference's rows where it scores."""
        learner, reference = SIGNS[self.method]
        models = []
        if learner:
            models.append((learner, self._pairs(model, parts, join)))
        if reference:
            images, texts = (join(torch.cat([part[SCORER + kind] for part in parts])) for kind in ("image", "text"))
            models.append((reference, Pairs(images, texts, images.new_ones(1), images.new_zeros(1))))
        group = join(torch.cat([part["group"] for part in parts])) if "group" in parts[0] else None
        return Scores(models, join(torch.cat([part["has_text"] for part in parts])), group)

    def _pairs(self, model: Model, parts: Sequence[Batch], join: Callable[[Tensor], Tensor]) -> Pairs:
        """All ranks' pairs as a model sees them, encoded part by part."""
        images, texts = [], []
        for part in parts:
            with self.autocast():
                encoded = Encoded(model, to_device(self._resized(part), model.logit_bias.device))
                image, text = encoded.image().pooled, encoded.text().pooled
            assert image is not None and text is not None
            images.append(unit(image))
            texts.append(unit(text))
        return Pairs(join(torch.cat(images)), join(torch.cat(texts)), model.logit_scale.exp(), model.logit_bias)

    def _resized(self, part: Batch) -> Batch:
        """A part whose images, uint8, are resized to `resolution`, as a frame resizes them; smaller ones stay."""
        if self.resolution is None or self.resolution >= part["image"].shape[-1]:
            return part
        size, kind = [self.resolution] * 2, transform.InterpolationMode(self.interpolation)
        return part | {"image": transform.resize(part["image"], size, kind, antialias=True)}

    def _numbers(self, scores: Scores, own: Tensor, chosen: Tensor) -> Row:
        """How scores lie, of the examples that have a text; how far the models agree on what is hard."""
        some = widen(own[scores.valid].cpu())
        if not len(some):
            return {}
        row: Row = {
            "curate/score": finite(float(some.mean())),
            "curate/score_chosen": finite(float(own[chosen].mean())),
        }
        quantiles = np.quantile(some.numpy(), QUANTILES).tolist()
        row |= {f"curate/score_p{100 * q:.0f}": finite(value) for q, value in zip(QUANTILES, quantiles, strict=True)}
        if len(scores.models) == 2 and len(some) > 1:
            losses = torch.stack([widen(pairs.own())[scores.valid] for _, pairs in scores.models])
            row["curate/agreement"] = finite(float(torch.corrcoef(losses)[0, 1]))
        return row

    def _origins(self, whole: Batch, chosen: Tensor) -> Row:
        """Of each name that is not alone, its share of what is chosen; counts what was seen and chosen."""
        row: Row = {}
        for kind, names in self.names.items():
            places = gathered(whole[f"{ORIGIN}{kind}"])
            seen = places.bincount(minlength=len(names)).tolist()
            taken = places[chosen].bincount(minlength=len(names)).tolist()
            for name, before, after in zip(names, seen, taken, strict=True):
                self.seen[f"{kind}/{name}"] += before
                self.chosen[f"{kind}/{name}"] += after
                if self.seen[f"{kind}/{name}"] not in (0, sum(self.seen[f"{kind}/{other}"] for other in names)):
                    row[f"curate/{kind}/{name}"] = after / len(chosen)
        return row
