"""Schedule-free AdamW: a constant rate after the warm-up, and an average of the weights that is judged and saved."""

from typing import Any

import torch
from torch import Tensor

from opensiglip.training.sharding import local

EPS = 1e-8


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """AdamW whose average of weights takes the place of a decaying rate.    (Defazio et al., arXiv:2405.15682, Alg. 1)

    With the gradient g at y: v <- beta2 v + (1 - beta2) g^2, d = g / (sqrt(v / (1 - beta2^t)) + 1e-8) + decay y,
    z <- z - lr d, x <- (1 - c) x + c z with c = lr^2 / (sum of all lr^2), y = (1 - beta1) z + beta1 x. Each parameter
    counts its own steps. In training the parameters hold y; `eval` gives them x and `train` gives y back, to the bit.

    Steps are those of the library `schedulefree`, whose sums of rates lie in the groups, which our checkpoints do not
    hold, and whose switch between x and y rounds.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        """`groups`: of `parameter_groups`; `betas`: the share of x in y, and what v keeps."""
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, lr, (beta1, beta2) = self.state[parameter], group["lr"], group["betas"]
        if not state:
            state.update({key: kept for key, kept in self.fresh(parameter).items() if key != "y"})
            local(state["z"]).copy_(local(parameter))
        state["step"] += 1
        state["rates"] += lr**2
        share = lr**2 / float(state["rates"]) if lr else 0.0
        y, z, square, grad = (local(one) for one in (parameter, state["z"], state["exp_avg_sq"], gradient))
        square.lerp_(grad.square(), 1 - beta2)
        change = grad / (square / (1 - beta2 ** float(state["step"]))).sqrt_().add_(EPS)
        change.add_(y, alpha=group["weight_decay"])
        y.lerp_(z, share).add_(change, alpha=lr * (beta1 * (1 - share) - 1))  # without x, which it does not keep
        z.sub_(change, alpha=lr)

    @torch.no_grad()
    def eval(self) -> None:
        """Give the parameters the averages x, to be judged or saved; y is kept beside."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter)
                if state and "y" not in state:
                    state["y"] = parameter.detach().clone()
                    local(parameter).lerp_(local(state["z"]), 1 - 1 / group["betas"][0])

    @torch.no_grad()
    def train(self) -> None:
        """Give the parameters back what `eval`, perhaps before a checkpoint, has kept."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter)
                if state and "y" in state:
                    local(parameter).copy_(local(state.pop("y")))

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """What a checkpoint holds of a parameter."""
        kept = {key: torch.zeros_like(parameter, requires_grad=False) for key in ("z", "exp_avg_sq", "y")}
        return {"step": torch.zeros(()), "rates": torch.zeros((), dtype=torch.float64), **kept}
