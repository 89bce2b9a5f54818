"""What is read off frozen features: nearest neighbours, least squares and logistic regression.

Least squares and logistic regression are scikit-learn's (measured: the loss of our L-BFGS to 1e-6 of itself, in a
quarter of its time for 20,000 rows). Nearest neighbours are ours: scikit-learn's give the same votes to 3e-7 in 1.8
times the time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opensiglip.errors import UserError
from opensiglip.float64 import widen

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO's
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the squared weights
L2, CONSTANT = 2.0**10, 100.0  # big_vision's: the bias is a feature so large that it is hardly regularised
TOLERANCE, STEPS = 1e-6, 1000  # of L-BFGS

Readout = Callable[[Tensor], Tensor]


def knn(x: Tensor, y: Tensor, test: Tensor, classes: int) -> Tensor:
    """Votes [E, C] of the 20 nearest features by cosine, weighted by exp(cosine / 0.07).    (DINO eval_knn.py)"""
    near, index = (F.normalize(test, dim=-1) @ F.normalize(x, dim=-1).T).topk(min(NEIGHBOURS, len(x)), dim=1)
    return torch.zeros(len(test), classes, dtype=near.dtype).scatter_add_(1, y[index], (near / TEMPERATURE).exp())


def few_shot(x: Tensor, y: Tensor, test: Tensor, classes: int, l2: float = L2) -> Tensor:
    """Scores [E, C] float64: W = (X'X + l2 I)^-1 X'Y on whitened features with a constant one, Y in {-1, 1}.

    (big_vision evaluators/fewshot_lsr.py:38-111)
    """
    mean, std = _moments(x)
    known, asked = (F.pad((widen(some) - mean) / std, (0, 1), value=CONSTANT) for some in (x, test))
    targets = 2 * widen(F.one_hot(y, classes)) - 1
    fitted = linear_model().Ridge(l2, fit_intercept=False, solver="cholesky").fit(known.numpy(), targets.numpy())
    return torch.from_numpy(fitted.predict(asked.numpy()).reshape(len(test), classes))


def draw_shots(x: Tensor, y: Tensor, shots: int, seed: int) -> tuple[Tensor, Tensor]:
    """`shots` examples of each class, fewer where it has fewer."""
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    kept = torch.cat([shuffled[y[shuffled] == one][:shots] for one in y.unique()])
    return x[kept], y[kept]


def fit_classifier(x: Tensor, y: Tensor, classes: int, seed: int, penalties: Sequence[float] = PENALTIES) -> Readout:
    """From features [M, D] to logits [M, C]: logistic regression on standardised features.

    x [N, D] float, y [N] int64. The penalty is that of `penalties` which is best on a fifth of the rows; then all rows
    are fitted.
    """
    mean, std = (moment.to(x.dtype) for moment in _moments(x))
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = ((x - mean) / std)[shuffled], y[shuffled].to(x.device)
    best = penalties[0] if len(penalties) == 1 else choose_penalty(x, y, classes, penalties)
    weight, bias = logistic_regression(x, y, classes, best)
    return lambda features: ((features - mean) / std) @ weight + bias


def choose_penalty(x: Tensor, y: Tensor, classes: int, penalties: Sequence[float]) -> float:
    """The penalty of the least cross-entropy on the first fifth of the rows, fitted to the others."""
    fifth = max(1, len(x) // 5)

    def validation_loss(penalty: float) -> float:
        weight, bias = logistic_regression(x[fifth:], y[fifth:], classes, penalty)
        return float(F.cross_entropy(x[:fifth] @ weight + bias, y[:fifth]))

    return min(penalties, key=validation_loss)


def logistic_regression(x: Tensor, y: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights [D, C] and biases [C] of the least mean cross-entropy + penalty / 2 x the sum of squared weights.

    A class without rows has the weights 0 and a bias that no softmax notices.
    """
    weight, bias = x.new_zeros(x.shape[1], classes), x.new_full((classes,), -100.0)
    known = y.unique()
    if len(known) == 1:
        bias[known] = 0
        return weight, bias
    two = len(known) == 2  # then the library fits the second class's log-odds alone, whose square is twice the sum's
    strength = (2 if two else 1) / (penalty * len(x))
    fitted = linear_model().LogisticRegression(C=strength, tol=TOLERANCE, max_iter=STEPS)
    fitted.fit(x.cpu().numpy(), y.cpu().numpy())
    rows, offsets = fitted.coef_, fitted.intercept_
    if two:
        rows, offsets = np.concatenate([-rows, rows]) / 2, np.concatenate([-offsets, offsets]) / 2
    weight[:, known] = torch.as_tensor(rows.T, dtype=x.dtype, device=x.device)
    bias[known] = torch.as_tensor(offsets, dtype=x.dtype, device=x.device)
    return weight, bias


def fit_numbers(x: Tensor, y: Tensor, penalty: float = 1e-3) -> Readout:
    """From features [M, D] to numbers [M] float64: least squares on standardised features.

    x [N, D], y [N]; `penalty` x N is added to the diagonal.
    """
    mean, std = _moments(x)
    known = ((widen(x) - mean) / std).cpu().numpy()
    fitted = linear_model().Ridge(penalty * len(x), solver="cholesky").fit(known, widen(y).cpu().numpy())
    weight, bias = torch.from_numpy(fitted.coef_).to(x.device), float(fitted.intercept_)
    return lambda features: ((widen(features) - mean) / std) @ weight + bias


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, float64; the latter above 0."""
    return widen(x).mean(0), widen(x).std(0, correction=0) + 1e-5


def linear_model() -> Any:
    """scikit-learn's linear models. Raises UserError where it is not installed."""
    try:
        from sklearn import linear_model
    except ImportError as error:
        raise UserError('probes are fitted with scikit-learn: pip install "opensiglip[eval]".') from error
    return linear_model
