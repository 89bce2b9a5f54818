"""Muon for the matrices inside networks, AdamW for all other weights, as one optimizer."""

from typing import Any

import torch
from torch import Tensor, nn

from opensiglip.errors import UserError
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


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW over the groups of one learner: one list of groups, one state.

    Muon's update is scaled to AdamW's, by 0.2 sqrt(max(rows, columns)), so that rate and decay are those of AdamW
    (Moonlight, arXiv:2502.16982, Sec. 2.2); momentum 0.95, Nesterov's, five Newton-Schulz steps in bfloat16. A matrix
    that is sharded is gathered for its update, so that this has the bits of one rank's.
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
        muon = torch.optim.Muon(of_muon, lr=lr, adjust_lr_fn="match_rms_adamw")
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
        alone = torch.optim.Muon([matrix], **{key: group[key] for key in self.muon.defaults})
        alone.state[matrix] = {"momentum_buffer": whole(state["momentum_buffer"]).clone()}
        alone.step()
        parameter.copy_(cut(matrix.detach(), parameter))
        state["momentum_buffer"].copy_(cut(alone.state[matrix]["momentum_buffer"], parameter))
        self.state[parameter] = state

    def _some(self, group: dict[str, Any], muon: bool) -> list[Tensor]:
        return [p for p in group["params"] if (id(p) in self.matrices) == muon]
