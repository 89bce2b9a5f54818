"""A linear layer on frozen features, fitted deterministically within a fixed budget."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 60  # of L-BFGS
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the squared weights


def fit_linear(
    x: Tensor, y: Tensor, classes: int, seed: int, penalties: Sequence[float] = PENALTIES
) -> Callable[[Tensor], Tensor]:
    """A function from features [M, D] to logits [M, C]: logistic regression by L-BFGS on standardised features.

    x [N, D] float, y [N] int64. The penalty is that of `penalties` which is best on a fifth of the rows, then all fit.
    """
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[shuffled], y[shuffled].to(x.device)
    mean, std = x.mean(0), x.std(0, correction=0) + 1e-5
    x = (x - mean) / std
    fifth = max(1, len(x) // 5)

    def lost(penalty: float) -> float:
        weight, bias = logistic(x[fifth:], y[fifth:], classes, penalty)
        return float(F.cross_entropy(x[:fifth] @ weight + bias, y[:fifth]))

    best = min(penalties, key=lost) if len(penalties) > 1 else penalties[0]
    weight, bias = logistic(x, y, classes, best)
    return lambda features: ((features - mean) / std) @ weight + bias


def logistic(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights [D, C] and biases [C] of the least mean cross-entropy + penalty / 2 x the sum of squared weights."""
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def ridge(x: Tensor, y: Tensor, penalty: float = PENALTIES[1]) -> Callable[[Tensor], Tensor]:
    """A function from features [M, D] to numbers [M]: least squares on standardised features, float64.

    x [N, D], y [N]; `penalty` x the mean square of the rows is added to the diagonal.
    """
    mean, std = x.mean(0).double(), x.std(0, correction=0).double() + 1e-5
    known, middle = (x.double() - mean) / std, y.double().mean()
    gram = known.T @ known + penalty * len(x) * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    weight = torch.linalg.solve(gram, known.T @ (y.double() - middle).to(x.device))
    return lambda features: ((features.double() - mean) / std) @ weight + middle
