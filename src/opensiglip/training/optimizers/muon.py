"""Muon for the matrices inside networks, AdamW for all other weights, as one optimizer."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from opensiglip.errors import UserError
from opensiglip.training.precision import multiplies_bf16
from opensiglip.training.sharding import READ, cut, local, whole


def hidden_matrices(module: nn.Module) -> set[int]:
    """The ids of the weights that Muon takes: those of linear layers, but for an image's patch embedding.

    AdamW keeps what is no single matrix between hidden features (Keller Jordan's Muon, "Empirical considerations"):
    patch and word embeddings, positions, vocabularies, prototypes, probes, norms, biases, temperature, and the MAP
    head's three projections in one tensor (the last is ours).
    """
    embeddings = {id(p) for part in module.modules() if isinstance(part, READ) for p in part.parameters()}
    linear = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
    return linear - embeddings


def adamw_state(parameter: Tensor) -> dict[str, Tensor]:
    """What torch's fused AdamW keeps of a parameter, before its first step."""
    moments = {key: torch.zeros_like(parameter, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), device=parameter.device), **moments}


def orthogonal(update: Tensor, group: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """A matrix (rows, columns) with its singular values near 1, by Newton and Schulz, in `dtype`.

    X <- a X + (b A + c A^2) X with A = X X^T, from X = update / |update|; `group` has torch's a, b, c and steps.
    """
    a, b, c = group["ns_coefficients"]
    tall = update.size(0) > update.size(1)
    x = (update.T if tall else update).to(dtype)
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Muon):
    """torch's Muon, orthogonal in the format that the device multiplies fast.

    torch's own step multiplies in bfloat16 everywhere, which makes it 25 times as slow as in float32 on a CPU with
    AVX2 alone (`opensiglip bench muon`). Where bfloat16 is fast, the steps are torch's bit for bit. Momentum is always
    Nesterov's, and the update always scaled to AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                self._step_one(parameter, parameter.grad, group)

    def _step_one(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        dtype = torch.bfloat16 if multiplies_bf16(parameter.device) else torch.float32
        update = orthogonal(gradient.lerp(average, group["momentum"]), group, dtype)
        scale = 0.2 * math.sqrt(max(parameter.shape))  # to the root mean square of AdamW's updates
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


class MuonAdamW(torch.optim.Optimizer):
    """Muon and torch's AdamW over the groups of one learner: one list of groups, one state.

    Muon's update is scaled to AdamW's, by 0.2 sqrt(max(rows, columns)), so that rate and decay are those of AdamW
    (Moonlight, arXiv:2502.16982, Sec. 2.2); momentum 0.95, Nesterov's, five Newton-Schulz steps. A matrix that is
    sharded is gathered for its update, so that this has the bits of one rank's.
    """

    def __init__(self, module: nn.Module, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        """`groups`: of `parameter_groups`. Raises UserError where none of the weights is a hidden matrix."""
        self.matrices = hidden_matrices(module)
        of_muon, of_adamw = (
            [group | {"params": some} for group in groups if (some := self._some(group, muon))]
            for muon in (True, False)
        )
        if not of_muon:
            raise UserError("--optimizer muon: no linear layer is trained, and it is for these alone; give adamw.")
        muon = Muon(of_muon, lr=lr)
        adamw = torch.optim.AdamW(of_adamw, lr=lr, betas=betas, fused=True)
        self.muon, self.adamw = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        muon.state = adamw.state = self.state  # by parameter, of which each has its own

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.adamw.step()
        sharded = [(group, p) for group in self.muon.param_groups for p in group["params"] if local(p) is not p]
        if not sharded:
            self.muon.step()
        for group, parameter in sharded:
            if parameter.grad is not None:
                self._step_whole(group, parameter)

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept of a parameter, before its first step."""
        if id(parameter) in self.matrices:
            return {"momentum_buffer": torch.zeros_like(parameter, requires_grad=False)}
        return adamw_state(parameter)

    def _step_whole(self, group: dict[str, Any], parameter: Tensor) -> None:
        """One step of a matrix of which each rank has a slice. To be called on all ranks."""
        state = self.state[parameter] or self.fresh(parameter)
        matrix = nn.Parameter(whole(parameter.detach()).clone())
        matrix.grad = whole(parameter.grad)  # type: ignore[arg-type]
        alone = Muon([matrix], **{key: group[key] for key in self.muon.defaults})
        alone.state[matrix] = {"momentum_buffer": whole(state["momentum_buffer"]).clone()}
        alone.step()
        parameter.copy_(cut(matrix.detach(), parameter))
        state["momentum_buffer"].copy_(cut(alone.state[matrix]["momentum_buffer"], parameter))
        self.state[parameter] = state

    def _some(self, group: dict[str, Any], muon: bool) -> list[Tensor]:
        return [p for p in group["params"] if (id(p) in self.matrices) == muon]
