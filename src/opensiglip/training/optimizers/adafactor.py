"""big_vision's Adafactor: a factored second moment, a momentum in bfloat16: a quarter of AdamW's memory."""

from typing import Any

import torch
from torch import Tensor

from opensiglip.training.sharding import cut, local, whole

FACTORED = 32  # a matrix whose sides are at least so long keeps the sums of its rows and columns
EXPONENT, EPS = 0.8, 1e-30


class Adafactor(torch.optim.Optimizer):
    """Adam whose second moment of a matrix is the outer product of two vectors.    (big_vision optax.py:187-214)

    With s = g^2 + 1e-30 and d = min(beta2, 1 - t^-0.8): r <- d r + (1 - d) mean over columns of s, c likewise over
    rows, v = r c / mean(r); what is no matrix, or is small, keeps v <- d v + (1 - d) s. Then
    m <- beta1 m + (1 - beta1) g / sqrt(v), stored in bfloat16 and without bias correction, and
    w <- w - lr m - lr decay w. No update is clipped. big_vision factors the two longest sides of any tensor; here only
    matrices are factored, and the MAP head's three projections are one of them (both ours).
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        """`groups`: of `parameter_groups`; `betas`: of the momentum, and the second moment's largest."""
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self.fresh(parameter))
                state["step"] += 1
                beta1, most = group["betas"]
                scaled = self._scaled(parameter.grad, state, min(most, 1 - float(state["step"]) ** -EXPONENT))
                kept = local(state["momentum"])
                momentum = kept.to(scaled.dtype).lerp_(scaled, 1 - beta1)
                kept.copy_(momentum)
                weight = local(parameter)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(momentum, alpha=-group["lr"])

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept of a parameter, before its first step; rows and columns are whole on every rank."""
        state = {
            "step": torch.zeros(()),
            "momentum": torch.zeros_like(parameter, dtype=torch.bfloat16, requires_grad=False),
        }
        if parameter.ndim != 2 or min(parameter.shape) < FACTORED:
            return state | {"exp_avg_sq": torch.zeros_like(parameter, requires_grad=False)}
        sides = zip(("rows", "columns"), parameter.shape, strict=True)
        return state | {name: torch.zeros(side, dtype=parameter.dtype, device=parameter.device) for name, side in sides}

    def _scaled(self, grad: Tensor, state: dict[str, Tensor], decay: float) -> Tensor:
        """This rank's slice of g / sqrt(v); updates v."""
        squares = grad.square().add_(EPS)
        if "rows" not in state:
            return local(grad) * local(state["exp_avg_sq"].lerp_(squares, 1 - decay)).rsqrt()
        for name, side in (("rows", 1), ("columns", 0)):
            state[name].lerp_(whole(squares.sum(side)) / grad.shape[side], 1 - decay)
        rows = (state["rows"] / state["rows"].mean()).rsqrt()
        return local(grad) * local(cut(rows, grad))[:, None] * state["columns"].rsqrt()
