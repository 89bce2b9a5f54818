"""What tells an encoder's tokens apart: where they stand, what image they are of, or what they are of it."""

from typing import Any

from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.metrics.intervals import mean_with_interval
from opensiglip.float64 import widen
from opensiglip.inference.predictor import Predictor


def token_variance(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """Shares of the tokens' variance, which add up to 1: `place`, `image`, and `rest`, which neither of them explains.

    Two-way analysis of variance of tokens t_in, image i and place n: t_in - m = (m_n - m) + (m_i - m) + r_in. Tokens
    that all speak of the whole image have little rest; a decoder that asks for one thing of several needs it. Square
    images of one size; intervals: bootstrap over images, of the places' means as they are.
    """
    if examples.valid is not None or not examples.tokens.shape[1]:
        raise NotApplicable("tokens stand at the same places in images of one size alone")
    tokens = examples.tokens - examples.tokens.mean((0, 1))  # [E, N, D]
    place, image = tokens.mean(0), tokens.mean(1, keepdim=True)
    total = widen(tokens.square().mean((1, 2)))  # [E]
    parts = {
        "place": widen(place.square().mean()).expand(len(total)),
        "image": widen(image.square().mean((1, 2))),
        "rest": widen((tokens - place - image).square().mean((1, 2))),
    }
    if not total.sum():
        raise NotApplicable("all tokens are alike")
    metrics: dict[str, Any] = {}
    for name, part in parts.items():
        shares = (part / total.clamp(min=total.max() * 1e-12)).tolist()
        metrics |= mean_with_interval(name, shares, range(len(total)), total.tolist())
    return BenchmarkResult(metrics)
