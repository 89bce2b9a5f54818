"""Probes of frozen features, of whole images and of patches."""

from opensiglip.errors import UserError
from opensiglip.evaluation.benchmark import BenchmarkResult, Context, NotApplicable
from opensiglip.evaluation.benchmarks.depth_probe import depth_probe
from opensiglip.evaluation.benchmarks.image_probes import image_probes
from opensiglip.evaluation.benchmarks.segmentation_probe import segmentation_probe
from opensiglip.evaluation.benchmarks.token_variance import token_variance
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.metrics.linear import linear_model
from opensiglip.inference.predictor import Predictor

PARTS = {
    "image": image_probes,
    "segmentation": segmentation_probe,
    "depth": depth_probe,
    "token_variance": token_variance,
}


def probes(model: Predictor, examples: EncodedExamples, context: Context) -> BenchmarkResult:
    """What simple readings find in the frozen features: classes of images, classes of pixels, depths of pixels.

    Each part whose targets the examples of both splits have (`image_probes`, `segmentation_probe`, `depth_probe`), and
    what tells tokens apart (`token_variance`).
    """
    try:
        linear_model()
    except UserError as error:
        raise NotApplicable(str(error).rstrip(".")) from error
    metrics, samples, missing = {}, [], []
    for name, part in PARTS.items():
        try:
            result = part(model, examples, context)
        except NotApplicable as reason:
            missing.append(str(reason))
        else:
            metrics[name] = result.metrics
            samples += result.samples
    if not metrics:
        raise NotApplicable("; ".join(missing))
    return BenchmarkResult(metrics, samples)
