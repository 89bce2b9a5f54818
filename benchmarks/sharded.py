"""A training step of SigLIP 2 over several ranks, whole (DDP) or sharded (FSDP2): what each rank holds."""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from benchmarks.case import Case
from benchmarks.measure import Row, Sample, Variant, rows, sample, start
from opensiglip.distributed import average, meeting
from opensiglip.models.model import Model
from opensiglip.models.sizes import architecture, head
from opensiglip.objectives.captioning import Caption
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.objectives.distillation import LocalToGlobal, MaskedPatches
from opensiglip.optim import adamw
from opensiglip.training.learner import Learner, denominators
from opensiglip.training.sharding import local, shard, whole

WHOLE, SHARDED = "opensiglip, DDP", "opensiglip, --shard"
MIB = 2**20


@dataclass(frozen=True)
class Step:
    """What is measured: SigLIP 2 of a size, on so many images in all."""

    size: str
    images: int
    vocabulary: int
    rounds: int

    def case(self, ranks: int) -> Case:
        """Networks, and what makes a rank's batch for them."""
        networks = architecture(self.size, None, length=32, text=True, decoder=True)
        images, place = self.images // ranks, torch.device("cpu")
        return Case(networks, head(self.size), self.vocabulary, images, place, torch.float32)

    def learner(self, case: Case) -> Learner:
        """The networks with all objectives; the same on every rank."""
        torch.manual_seed(0)
        width = case.networks.vision.width
        taught = [kind(width, case.head, weight=0.25, start=0.8) for kind in (LocalToGlobal, MaskedPatches)]
        return Learner(Model.new(case.networks, self.vocabulary), [Sigmoid(), Caption(), *taught])


def measured(what: Step, ranks: int, folder: Path) -> list[Row]:
    """Rank 0's time, its peak above the level before the step, and the most that a rank holds."""
    mp.spawn(work, (ranks, what, folder), nprocs=ranks)  # a fork fails once autograd has run here
    seen: list[dict[str, Any]] = [json.loads((folder / f"rank{rank}").read_text()) for rank in range(ranks)]
    names = list(seen[0])
    samples: dict[str, list[Sample]] = {name: seen[0][name]["samples"] for name in names}
    most = {name: {key: max(s[name]["held"][key] for s in seen) for key in seen[0][name]["held"]} for name in names}
    variants = [Variant(name, lambda: None, facts=most[name]) for name in names]
    return rows(f"step of siglip2 {what.size}, {ranks} ranks", variants, names[0], samples)


def work(rank: int, ranks: int, what: Step, folder: Path) -> None:
    """One rank's part: a step in each way, then `rounds` more that are measured."""
    place, seen = start("cpu"), {}
    with meeting(folder / "step", rank, ranks):
        for name in (WHOLE, SHARDED) if ranks > 1 else (WHOLE,):
            case = what.case(ranks)
            learner, batch = what.learner(case), case.batch(3, 0.5) | case.views()
            wrapped: Any = learner
            if name == SHARDED:
                shard(learner, place)
            elif ranks > 1:
                wrapped = DistributedDataParallel(learner, broadcast_buffers=False)
            optimizer = adamw(learner, 1e-4, 0.1)

            def step(learner: Any, wrapped: Any, batch: Any, optimizer: Any) -> None:
                losses, notes = wrapped(batch, denominators(learner, [batch]).float())
                losses["loss"].backward()
                trained = [p for p in learner.parameters() if p.grad is not None]
                norm = whole(torch.nn.utils.get_total_norm([p.grad for p in trained]))
                torch.nn.utils.clip_grads_with_norm_(trained, 1.0, norm)
                optimizer.step()
                learner.after_step(average(notes), 0.9)
                optimizer.zero_grad()

            run = partial(step, learner, wrapped, batch, optimizer)
            run()
            seen[name] = {"samples": [sample(run, place) for _ in range(what.rounds)], "held": held(learner, optimizer)}
        (folder / f"rank{rank}").write_text(json.dumps(seen))
        dist.barrier()
        os._exit(0)  # gloo's threads may wait for ever, at the end, for a rank that has gone


def held(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """MiB of this rank's weights, of their gradient and of the optimizer's moments."""
    parameters = list(learner.parameters())
    sizes = {
        "weights": sum(local(p).nbytes for p in parameters),
        "gradient": sum(local(p).nbytes for p in parameters if p.requires_grad),
        "moments": sum(local(x).nbytes for state in optimizer.state.values() for x in state.values()),
    }
    return {f"{name} MiB": round(size / MIB) for name, size in (sizes | {"in all": sum(sizes.values())}).items()}
