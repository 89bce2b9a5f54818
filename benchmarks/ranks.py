"""Several ranks on one machine's CPU: the sigmoid loss against open_clip's, and a training step whole and sharded."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Row, Sample, Variant, peer, positive, rows, sample, start
from benchmarks.report import report
from benchmarks.sharded import Step, measured
from opensiglip.distributed import meeting
from opensiglip.losses.pairwise import sigmoid_loss

OURS, MODES = "opensiglip", ("bidir", "shift", "reduce", "gather")


def bench(
    size: int = 4096,
    ranks: tuple[int, ...] = (1, 2, 4),
    width: int = 768,
    rounds: int = 3,
    model: str = "tiny",
    images: int = 16,
    vocabulary: int = 8192,
    out: Path = Path("runs/bench"),
) -> None:
    """Gloo ranks in float32: the sigmoid loss forward and backward, and the memory of a rank in a training step.

    Time and peak are rank 0's; weights, gradient and moments are those of the rank that holds most.

    Args:
        size: size of the global batch.
        ranks: numbers of processes to measure.
        width: of the embeddings.
        rounds: measurements of each variant, taken in turn; the median is reported.
        model: size of the SigLIP 2 model for the training step.
        images: its global batch.
        vocabulary: vocabulary size of its tokenizer.
        out: folder for the JSON and the plot.
    """
    positive(size=size, ranks=ranks, width=width, rounds=rounds, images=images, vocabulary=vocabulary)
    place = start("cpu")
    names = [OURS] if peer("open_clip.loss", "open_clip_torch") is None else [OURS, *(f"open_clip {m}" for m in MODES)]
    table = list[Row]()
    for count in ranks:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(work, (count, size // count, width, rounds, names, folder), nprocs=count)
            samples: dict[str, list[Sample]] = json.loads((Path(folder) / "samples").read_text())
        variants = [Variant(name, lambda: None, 6 * size * (size // count) * width) for name in names]
        table += rows(f"N {size}, {count} ranks", variants, names[min(1, len(names) - 1)], samples)
    for count in ranks:
        with tempfile.TemporaryDirectory() as folder:
            table += measured(Step(model, images, vocabulary, rounds), count, Path(folder))
    report("ranks", table, out, place)


def work(rank: int, ranks: int, share: int, width: int, rounds: int, names: list[str], folder: str) -> None:
    """One rank's part; rank 0 writes down what it took."""
    place = start("cpu")
    generator = torch.Generator().manual_seed(rank)
    image, text = (F.normalize(torch.randn(share, width, generator=generator), dim=-1) for _ in range(2))
    leaves = [x.requires_grad_() for x in (image, text, torch.tensor([10.0]), torch.tensor([-10.0]))]

    def step(loss: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        value = loss(*leaves)
        return value, *torch.autograd.grad(value, leaves[:2])

    with meeting(Path(folder) / "meeting", rank, ranks):
        losses = {name: _loss(name, rank, ranks) for name in names}
        results = {name: step(loss) for name, loss in losses.items()}
        for name, result in results.items():
            for ours, theirs in zip(results[OURS], result, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6, msg=f"{name} differs")
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, loss in losses.items():
                samples[name].append(sample(partial(step, loss), place))
    if rank == 0:
        (Path(folder) / "samples").write_text(json.dumps(samples))


def _loss(name: str, rank: int, ranks: int) -> Callable[..., Tensor]:
    if name == OURS:
        return lambda x, y, t, b: sigmoid_loss(x, y, t, b, torch.ones(len(x), dtype=torch.bool)) / len(x)
    from open_clip.loss import SigLipLoss

    loss: Callable[..., Tensor] = SigLipLoss(rank=rank, world_size=ranks, dist_impl=name.split()[1])
    return loss
