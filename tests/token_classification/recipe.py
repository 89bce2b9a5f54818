"""SigLIP with SuperCLIP's term and a nested width, so that every test over recipes looks at both."""

from opensiglip.recipes import Recipe, siglip


def token_classification(
    *,
    size: str = "B/16",
    resolution: int | None = None,
    length: int = 64,
    crop_area: float = 1.0,
    logit_bias: str = "-10",
) -> Recipe:
    """SigLIP that also predicts which tokens are in the caption, and compares the first half of embeddings too.

    Args:
        size: of the networks.
        resolution: pixels of a side.
        length: tokens per text.
        crop_area: smallest share of the image that a random crop keeps.
        logit_bias: where the sigmoid's bias starts.
    """
    return siglip(
        size=size,
        resolution=resolution,
        length=length,
        crop_area=crop_area,
        logit_bias=logit_bias,
        token_weight=1.0,
        nested=(16,),
    )
