"""Image and text towers, compared."""

from opensiglip.data.fields import Frame, Images, Texts
from opensiglip.models.sizes import architecture
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.recipes.recipe import Recipe


def siglip(
    *,
    size: str = "B/16",
    resolution: int | None = None,
    length: int = 64,
    crop_area: float = 1.0,
    logit_bias: str = "-10",
) -> Recipe:
    """SigLIP: one yes-or-no question per pair of image and text.    (arXiv:2303.15343)

    Args:
        size: tiny, S/16, B/16, B/32, L/14, L/16, So400m/14, So400m/16 or g/16.
        resolution: pixels of a side; by default 256 patches (tiny: 64 pixels).
        length: tokens of a text.
        crop_area: smallest share of the image that a random crop keeps; 1 is no crop, as in the paper.
        logit_bias: where the sigmoid's bias starts: the paper's -10, another number, or auto = log(p / (1 - p)) with
            p = 1 / batch, which small batches need.
    """
    networks = architecture(size, resolution, length=length, text=True)
    return Recipe(
        networks,
        Frame(networks.resolution, crop_area),
        fields=[Images(), Texts()],
        objectives=[Sigmoid()],
        logit_bias=logit_bias,
    )
