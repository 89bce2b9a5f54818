"""CapPa with captions rewarded from the first step on, so that every test over recipes looks at them."""

from opensiglip.recipes import Recipe, cappa


def self_critical(
    *,
    size: str = "B/16",
    resolution: int | None = None,
    length: int = 64,
    parallel: float = 0.75,
    decoder_bias: bool = False,
    crop_area: float = 1.0,
) -> Recipe:
    """CapPa that also learns from the CIDEr-D of captions that it draws.

    Args:
        size: of the networks.
        resolution: pixels of a side.
        length: tokens per text.
        parallel: fraction of the captions predicted in parallel.
        decoder_bias: biases in the decoder's blocks.
        crop_area: smallest share of the image that a random crop keeps.
    """
    return cappa(
        size=size,
        resolution=resolution,
        length=length,
        parallel=parallel,
        decoder_bias=decoder_bias,
        crop_area=crop_area,
        cider_weight=1.0,
    )
