"""The pairwise losses: ours in tiles, against losses that hold the N x N logits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Row, Variant, agree, compare, peer, positive, start
from benchmarks.report import report
from opensiglip.losses.pairwise import sigmoid_loss, softmax_loss

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # image, text, scale, bias -> mean over rows
PLAIN, CHUNKS = "plain", 512


def bench(
    sizes: tuple[int, ...] = (1024, 4096),
    width: int = 768,
    rounds: int = 5,
    device: str = "auto",
    out: Path = Path("runs/bench"),
) -> None:
    """Sigmoid and softmax loss, forward and backward in float32, against open_clip and transformers.

    Args:
        sizes: batch sizes N to measure; the plain variant needs at least 12 N^2 bytes of memory.
        width: of the embeddings.
        rounds: measurements of each variant, taken in turn; the median is reported.
        device: auto, cpu or cuda.
        out: folder for the JSON and the plot.
    """
    positive(sizes=sizes, width=width, rounds=rounds)
    place, rows = start(device), list[Row]()
    sigmoids, softmaxes = losses_of(width, place)
    for size in sizes:
        for name, losses, reference in (
            ("sigmoid", sigmoids, "open_clip" if "open_clip" in sigmoids else PLAIN),
            ("softmax", softmaxes, "open_clip" if "open_clip" in softmaxes else PLAIN),
        ):
            rows += _case(f"{name} {size}", losses, reference, size, width, place, rounds)
    report("sigmoid", rows, out, place)


def _case(
    case: str, losses: dict[str, Loss], reference: str, size: int, width: int, place: torch.device, rounds: int
) -> list[Row]:
    pairs = Pairs.new(size, width, place, bias=case.startswith("sigmoid"))
    gaps = agree({name: pairs.seen(loss) for name, loss in losses.items()}, reference, 1e-4)
    variants = [pairs.variant(name, loss, {"off by": gaps[name]}) for name, loss in losses.items()]
    return compare(case, variants, reference, place, rounds, torch.float32)


@dataclass(frozen=True)
class Pairs:
    """Embeddings of made-up pairs [N, D] twice, scale and bias; and those of them that a loss has a gradient at."""

    leaves: tuple[Tensor, ...]
    differentiable: tuple[Tensor, ...]

    @classmethod
    def new(cls, size: int, width: int, place: torch.device, *, bias: bool) -> "Pairs":
        """`bias`: the loss has one."""
        generator = torch.Generator().manual_seed(0)
        image, text = (F.normalize(torch.randn(size, width, generator=generator), dim=-1) for _ in range(2))
        given = (image, text, torch.tensor([10.0]), torch.tensor([-10.0]))
        leaves = tuple(x.to(place).requires_grad_() for x in given)
        return cls(leaves, leaves if bias else leaves[:3])

    def variant(self, name: str, loss: Loss, facts: dict[str, Any]) -> Variant:
        """Forward and backward of a loss."""
        size, width = self.leaves[0].shape
        return Variant(name, partial(self.step, loss), 6 * size**2 * width, facts=facts)

    def step(self, loss: Loss) -> tuple[Tensor, ...]:
        """The loss and its gradients."""
        value = loss(*self.leaves)
        return value, *torch.autograd.grad(value, self.differentiable)

    def seen(self, loss: Loss) -> tuple[Tensor, ...]:
        """Without what lies along the embeddings: transformers normalises them once more."""
        value, dx, dy, *others = self.step(loss)
        x, y = self.leaves[0].detach(), self.leaves[1].detach()
        return value, *(g - (g * e).sum(1, keepdim=True) * e for g, e in ((dx, x), (dy, y))), *others


def losses_of(width: int, place: torch.device) -> tuple[dict[str, Loss], dict[str, Loss]]:
    """Sigmoid losses and softmax losses, ours first."""
    sigmoids: dict[str, Loss] = {"opensiglip": _ours(sigmoid_loss), PLAIN: _plain_sigmoid}
    softmaxes: dict[str, Loss] = {"opensiglip": lambda x, y, t, b: _ours(softmax_loss)(x, y, t), PLAIN: _plain_softmax}
    sigmoids["in chunks"] = _chunked_sigmoid
    sigmoids["transformers"] = _transformers(width)
    if (open_clip := peer("open_clip.loss", "open_clip_torch")) is not None:
        sigmoids["open_clip"], clip = open_clip.SigLipLoss(), open_clip.ClipLoss()
        softmaxes["open_clip"] = lambda x, y, t, b: clip(x, y, t)
    if place.type != "cuda":
        print("left out: siglip-kernel needs a CUDA device")
    elif (kernel := peer("siglip_kernel", "siglip-kernel")) is not None:
        sigmoids["siglip-kernel"] = lambda x, y, t, b: kernel.fused_siglip_loss(x, y, t.log()[0], b[0])
    return sigmoids, softmaxes


def _ours(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def mean(x: Tensor, y: Tensor, *more: Tensor) -> Tensor:
        return loss(x, y, *more, torch.ones(len(x), dtype=torch.bool, device=x.device)) / len(x)

    return mean


def _plain_sigmoid(x: Tensor, y: Tensor, t: Tensor, b: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(x), device=x.device) - 1
    return -F.logsigmoid(signs * (t * x @ y.T + b)).sum() / len(x)


def _chunked_sigmoid(x: Tensor, y: Tensor, t: Tensor, b: Tensor) -> Tensor:
    """The same in chunks of rows, by autograd: as open_clip after 3.3.0 has it, which keeps every chunk's logits."""
    negatives = [F.softplus(t * rows @ y.T + b).sum() for rows in x.split(CHUNKS)]
    return (torch.stack(negatives).sum() - (t * (x * y).sum(1) + b).sum()) / len(x)


def _plain_softmax(x: Tensor, y: Tensor, t: Tensor, b: Tensor) -> Tensor:
    logits, labels = t * x @ y.T, torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def _transformers(width: int) -> Loss:
    """The loss that transformers' SiglipModel takes, between towers that hand over given embeddings."""
    from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

    class Given(nn.Module):
        embeddings: Tensor

        def forward(self, *inputs: Any, **more: Any) -> Any:
            return SimpleNamespace(pooler_output=self.embeddings)

    tiny: Any = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 1}
    text, vision = (
        SiglipTextConfig(**tiny, vocab_size=8, bos_token_id=None, eos_token_id=1),
        SiglipVisionConfig(**tiny, image_size=16),
    )
    model: Any = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.vision_model, model.text_model = Given(), Given()
    del model.logit_scale, model.logit_bias

    def loss(x: Tensor, y: Tensor, t: Tensor, b: Tensor) -> Tensor:
        model.vision_model.embeddings, model.text_model.embeddings = x, y
        model.logit_scale, model.logit_bias = t.log(), b
        return model(input_ids=y, pixel_values=x, return_loss=True).loss

    return loss
