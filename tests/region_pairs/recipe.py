"""SigLIP with regions and their phrases, so that every test over recipes looks at it."""

from opensiglip.recipes import Recipe, siglip


def region_pairs(
    *,
    size: str = "B/16",
    resolution: int | None = None,
    length: int = 64,
    crop_area: float = 1.0,
    logit_bias: str = "-10",
) -> Recipe:
    """SigLIP that also compares the patches in boxes with their phrases.

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
        region_pairs=1.0,
    )
