"""`--head-ema`: heads over pretrained towers are judged and kept as the moving average of what they were."""

from typing import Any

from torch import nn

from opensiglip.errors import UserError
from opensiglip.models.ema import Ema
from opensiglip.models.model import Model
from opensiglip.models.pretrained_towers import PretrainedText, PretrainedVision


class AveragedHead(nn.Module):
    """A head that learns and, out of training, its average: A <- m A + (1 - m) H after each step."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.average = head, Ema(head)

    @property
    def reads_patches(self) -> bool:
        """As the head says (`ImageHead`)."""
        return bool(self.head.reads_patches)

    def forward(self, read: Any) -> Any:
        return self.head(read) if self.training else self.average(read)


def add(model: Model) -> None:
    """Give the heads over pretrained towers an average, which begins as they are. Raises UserError without heads."""
    towers = [tower for tower in (model.vision, model.text) if isinstance(tower, PretrainedVision | PretrainedText)]
    headed = [tower for tower in towers if tower.head is not None]
    if not headed:
        raise UserError("--head-ema is for heads over the towers of --vision and --text; leave it out, or take align.")
    for tower in headed:
        tower.head = AveragedHead(tower.head)  # type: ignore[arg-type,assignment]


def settle(model: Model) -> None:
    """Put the averages in the place of the heads that they are of, so that the model is as without them."""
    for tower in (model.vision, model.text):
        if isinstance(head := getattr(tower, "head", None), AveragedHead):
            tower.head = head.average.copy.requires_grad_(True)  # type: ignore[union-attr]
