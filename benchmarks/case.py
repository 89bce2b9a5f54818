"""Our training steps on one made-up batch, from pixels and ids to the optimizer, at a given size and precision."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import flops
from benchmarks.captions import packed, texts
from benchmarks.measure import Variant
from opensiglip.data.fields.views import local_side
from opensiglip.models.model import Model
from opensiglip.models.sizes import Architecture, HeadShape
from opensiglip.objectives.base import Objective
from opensiglip.objectives.captioning import Caption
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.objectives.distillation import LocalToGlobal, MaskedPatches
from opensiglip.optim import adamw
from opensiglip.training.learner import Learner, denominators
from opensiglip.types import Batch

PLAIN = "opensiglip siglip"


@dataclass(frozen=True)
class Case:
    """What all steps of a comparison share."""

    networks: Architecture
    head: HeadShape  # of distillation
    vocabulary: int
    images: int
    place: torch.device
    dtype: torch.dtype
    compiled: bool = False

    def variant(
        self, name: str, objectives: list[Objective], tasks: int, parallel: float = 0.0, keep: float = 1.0
    ) -> Variant:
        """Our step on these objectives; with `keep` below 1 the tower reads that share of an image's patches."""
        networks = self.networks if tasks else replace(self.networks, decoder=None)
        learner = Learner(Model.new(networks, self.vocabulary), objectives).to(self.place)
        batch = self.batch(tasks, parallel)
        if keep < 1:
            batch["image_kept"] = self.some_patches(keep)[:, None]
        return Variant(name, self.ours(learner, batch), 0.0 if keep < 1 else self.floor(batch), self.images)

    def whole_run(self) -> list[Variant]:
        """siglip, SigLIP 2's first stage and all of it: one learner with more or fewer of its objectives begun."""
        width = self.networks.vision.width
        taught = [
            LocalToGlobal(width, self.head, weight=0.25, start=0.8),
            MaskedPatches(width, self.head, weight=0.0625, start=0.8),
        ]
        learner = Learner(Model.new(self.networks, self.vocabulary), [Sigmoid(), Caption(), *taught]).to(self.place)
        batch = self.batch(3, 0.5) | self.views()
        weights = sum(p.numel() for p in taught[0].head.parameters())
        first = self.floor(batch)
        stages = {
            PLAIN: ({"sigmoid"}, flops.contrastive(self.networks, self.images)),
            "siglip2, first stage": ({"sigmoid", "caption"}, first),
            "siglip2, all": (set(learner.active), first + flops.distillation(self.networks, batch, weights)),
        }
        run = self.ours(learner, batch)

        def step(begun: set[str]) -> None:
            learner.active = begun
            run()

        return [Variant(name, partial(step, begun), floor, self.images) for name, (begun, floor) in stages.items()]

    def ours(self, learner: Learner, batch: Batch) -> Callable[[], None]:
        """Forward, backward, clipped gradient, optimizer, teacher: what a step of `train` does."""
        if self.compiled:
            learner.compile()  # as `train --compile` does
        optimizer = adamw(learner, 1e-4, 0.1)
        trained = [p for p in learner.parameters() if p.requires_grad]

        def step() -> None:
            live = denominators(learner, [batch]).to(self.place, torch.float32)
            with self.autocast():
                losses, notes = learner(batch, live)
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            learner.after_step(notes, 0.9)
            optimizer.zero_grad(set_to_none=True)

        return step

    def peers(self, parameters: Iterable[torch.nn.Parameter], loss: Callable[[], Any]) -> Callable[[], None]:
        """A peer's step as plain training code has it: torch's AdamW as it comes, no clipping."""
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
        forward = torch.compile(loss) if self.compiled else loss

        def step() -> None:
            with self.autocast():
                value = forward()
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where that is asked for."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.place.type, self.dtype)

    def batch(self, tasks: int, parallel: float) -> Batch:
        """Pixels, ids, and the texts of so many tasks, packed."""
        side, length = self.networks.resolution, self.networks.length
        batch = {
            "image": torch.randn(self.images, 3, side, side),
            "text": torch.randint(2, self.vocabulary, (self.images, length)),
            "has_text": torch.ones(self.images, dtype=torch.bool),
        }
        if tasks:
            drawn = texts(self.images, tasks, length, self.vocabulary, parallel=parallel)
            batch |= packed(drawn, length, self.vocabulary)
        return {name: x.to(self.place) for name, x in batch.items()}

    def views(self) -> Batch:
        """What distillation reads."""
        side = self.networks.resolution
        small = local_side(side, self.networks.patch)
        views = {
            "global": torch.randn(self.images, 1, 3, side, side),
            "local": torch.randn(self.images, 8, 3, small, small),
            "mask_indices": self.some_patches(0.5),
        }
        return {name: x.to(self.place) for name, x in views.items()}

    def some_patches(self, share: float) -> Tensor:
        """Places [B, K] int64 of that share of each image's patches, at random, in order."""
        patches = (self.networks.resolution // self.networks.patch) ** 2
        drawn = torch.rand(self.images, patches).argsort(1)[:, : max(1, round(share * patches))]
        return drawn.sort(1).values.to(self.place)

    def floor(self, batch: Batch) -> float:
        """FLOP of both towers, the comparison, and what texts there are."""
        texts = flops.captions(self.networks, batch, self.vocabulary) if "inputs" in batch else 0.0
        return flops.contrastive(self.networks, self.images) + texts
