"""Probes of frozen features, of whole images and of patches."""

from opensiglip.evaluation.benchmark import Context, Findings, Impossible
from opensiglip.evaluation.benchmarks.dense import segmentation_probe
from opensiglip.evaluation.benchmarks.depth import depth_probe
from opensiglip.evaluation.benchmarks.features import image_probes
from opensiglip.evaluation.benchmarks.token_variance import token_variance
from opensiglip.evaluation.encoded import Judged
from opensiglip.inference.subject import Subject

PARTS = {
    "image": image_probes,
    "segmentation": segmentation_probe,
    "depth": depth_probe,
    "token_variance": token_variance,
}


def probes(subject: Subject, judged: Judged, context: Context) -> Findings:
    """What simple readings find in the frozen features: classes of images, classes of pixels, depths of pixels.

    Each part whose truth the examples of both splits have (`image_probes`, `segmentation_probe`, `depth_probe`), and
    what tells tokens apart (`token_variance`).
    """
    figures, pictures, missing = {}, [], []
    for name, part in PARTS.items():
        try:
            findings = part(subject, judged, context)
        except Impossible as reason:
            missing.append(str(reason))
        else:
            figures[name] = findings.figures
            pictures += findings.pictures
    if not figures:
        raise Impossible("; ".join(missing))
    return Findings(figures, pictures)
