"""Self-distillation: predict an EMA teacher's scores of whole images from crops, and of masked patches."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from opensiglip.data.text import TextPipeline
from opensiglip.losses.prototypes import prototype_distillation
from opensiglip.models.ema import Ema, Momentum
from opensiglip.models.heads import Head, HeadShape
from opensiglip.models.sizes import Architecture
from opensiglip.objectives.base import Encoded, Notes, PerExample, Signal
from opensiglip.types import Batch, Reading

STUDENT_TEMPERATURE = 0.1  # DINO and iBOT; SILC's is recalled to be the same
TEACHER_TEMPERATURE = 0.04
CENTRE_MOMENTUM = 0.9
DINO = Momentum(0.996)
NEAR = 0.01  # of ln K: an entropy this near to 0 or ln K means that the teacher carries no information
SLOW = 50  # steps that a new head may need until its teacher distinguishes images
SMOOTH = 0.9  # decay of the mean information, so that a single batch does not end a warning


class Distilled(PerExample):
    """A head for the student, its EMA for the teacher, and the centre that prevents collapse of the teacher.

    Teacher: p_t = softmax((z_t - c) / tau_t); after its use c <- 0.9 c + 0.1 mean(z_t).    (DINOv2
    loss/dino_clstoken_loss.py:12-100; SILC, Sec. 3.2)
    """

    least_information = 0.2  # fraction of the maximal information about a row below which an alarm is raised

    def __init__(self, width: int, head: HeadShape, *, weight: float, start: float, momentum: Momentum = DINO) -> None:
        """`width`: of the tower; `momentum`: of the teacher and of the head's EMA."""
        super().__init__(weight=weight, start=start)
        self.teacher, self.shape = momentum, head
        self._make(width)
        self.mean_information: float | None = None  # over the last steps; starts again in a resumed run
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(head.prototypes))

    def _make(self, width: int) -> None:
        """New weights, for features of this width."""
        self.width = width
        self.head = Head(width, self.shape)
        self.slow_head = Ema(self.head)  # the name in checkpoints

    @abstractmethod
    def width_of(self, architecture: Architecture) -> int:
        """The width of the features that the head reads."""

    def build(self, pipeline: TextPipeline, architecture: Architecture) -> None:
        """A recipe makes heads for its own tower; one of `--vision` may have another width."""
        if (width := self.width_of(architecture)) != self.width:
            self._make(width)

    def distil(self, encoded: Encoded, student: Tensor, teacher: Tensor) -> Tensor:
        """The sum over n and l of the cross-entropy of row n, l of student [N, L, D] to the mean of teacher [N, G, D].

        Adds notes for the centre and the log. The scores of all rows are never in memory at once.
        """
        features, prototypes = self.head(student)
        wanted, slow_prototypes = self.slow_head(teacher)
        loss, sums = prototype_distillation(
            features,
            prototypes,
            wanted,
            slow_prototypes,
            self.centre,
            temperature=STUDENT_TEMPERATURE,
            slow_temperature=TEACHER_TEMPERATURE,
        )
        groups, rows = len(teacher), teacher.shape[0] * teacher.shape[1]
        distinct = min(rows, len(self.centre))  # largest number of different answers
        entropy = sums.entropy / rows
        information = torch.special.entr(sums.probabilities / rows).sum() - entropy
        encoded.notes |= {
            f"{self.name}/centre": sums.scores / rows,
            f"{self.name}/teacher_entropy": entropy,
            f"{self.name}/teacher_information": information / math.log(max(2, distinct)),
            f"{self.name}/prototypes_used": sums.used.sum() / distinct,
            f"{self.name}/kl": loss.detach() / (groups * student.shape[1]) - sums.mean_entropy / groups,
        }
        return loss

    @torch.no_grad()
    def after_step(self, notes: Notes) -> None:
        mean = notes[f"{self.name}/centre"]  # over all ranks and parts
        self.centre.lerp_(mean.to(self.centre.dtype), 1 - CENTRE_MOMENTUM)

    def readings(self) -> dict[str, Reading]:
        """The loss is the teacher's entropy plus the student's distance; only the distance should fall."""
        highest, name = math.log(len(self.centre)), self.name
        return {
            f"loss/{name}": Reading(
                "The teacher's entropy plus the student's distance from the teacher (kl). It may rise as the teacher "
                "improves, which is not divergence: look at kl and the teacher's information instead."
            ),
            f"{name}/kl": Reading("The student's distance from the teacher. It falls, or stays low while both learn."),
            f"{name}/teacher_entropy": Reading(
                f"Alarm above {(1 - NEAR) * highest:.2f}, where all {len(self.centre)} prototypes are equally "
                f"likely, and below {NEAR * highest:.2f}, where every image gets the same prototype."
            ),
            f"{name}/teacher_information": Reading(
                f"Below {self.least_information:.0%} (dotted) the teacher's outputs are nearly the same for all "
                f"images; warning after {SLOW} steps.",
                self.least_information,
            ),
            f"{name}/prototypes_used": Reading("The share of prototypes in use. Near 0 the teacher has collapsed."),
        }

    def health(self, notes: Notes) -> list[Signal]:
        """Norm of the centre; the teacher's entropy and information, with alarms at both kinds of collapse.

        Information is that of a row about its prototype, H(mean p) - mean H(p), as a fraction of its maximum. It is 0
        at both kinds of collapse, and small long before the entropy reaches either end. A small mean only gives a
        warning, because an untrained tower has no information yet.
        """
        entropy, highest = float(notes[f"{self.name}/teacher_entropy"]), math.log(len(self.centre))
        information, cause, little = float(notes[f"{self.name}/teacher_information"]), None, None
        if math.isfinite(information):
            before = information if self.mean_information is None else self.mean_information
            self.mean_information = SMOOTH * before + (1 - SMOOTH) * information
        mean = information if self.mean_information is None else self.mean_information
        if entropy >= (1 - NEAR) * highest:
            cause = "all prototypes are equally likely for every image; the teacher lags too far or --lr is too high"
        elif information < self.least_information and entropy <= NEAR * highest:
            cause = "every image gets the same prototype; the centre does not keep up, or the temperature is too low"
        elif mean < self.least_information:
            little = (
                f"{self.name}: the teacher's answers are nearly the same for all images, so it teaches nothing (they "
                f"carry {mean:.1%} of what they could, at an entropy of {entropy:.3g} of {highest:.3g})"
            )
        alarm = cause and f"{self.name}: the teacher's entropy is {entropy:.3g} of {highest:.3g} ({cause})"
        return [
            Signal(f"{self.name}/centre_norm", float(self.centre.norm())),
            Signal(f"{self.name}/teacher_entropy", entropy, alarm, "another --momentum or --lr"),
            Signal(f"{self.name}/teacher_information", information, little, warn=SLOW, stop=None),
        ]


class LocalToGlobal(Distilled):
    """Predict the teacher's probabilities of a large crop from a small one.    (SILC, Eq. 3)

    L = -1/B sum_b mean over local views l and global views g of sum_k P_t(g)_k log P_s(l)_k, on the pooled image.
    Reads "global" [B, G, 3, S, S] and "local" [B, L, 3, s, s]. The papers do not say whether the sum or the mean over
    views is taken; the mean is DINO's normalisation.
    """

    name = "local_to_global"

    def width_of(self, architecture: Architecture) -> int:
        return architecture.embedding

    def live(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["local"]), device=batch["local"].device)

    def forward(self, encoded: Encoded) -> Tensor:
        local, whole = encoded.image("local").pooled, encoded.teacher("global").pooled
        assert local is not None and whole is not None
        student, teacher = (x.unflatten(0, (len(encoded["local"]), -1)) for x in (local, whole))
        return self.distil(encoded, student, teacher) / student.shape[1]


class MaskedPatches(Distilled):
    """Predict the teacher's probabilities at each masked patch.    (iBOT; TIPS; SigLIP 2, Sec. 2.3)

    L = -1/B sum_b mean over masked i of sum_k P_t(i)_k log P_s(i)_k, on patch tokens; the teacher sees the whole view.
    With `visible`, the mean is over all patches, masked or not (iBOT++ of TIPSv2; the equal weights are ours).
    Reads "global" [B, 1, 3, S, S] and "mask_indices" [B, M], indices of patches.
    """

    name = "masked_patches"
    least_information = 0.1  # many patches look the same

    def __init__(
        self,
        width: int,
        head: HeadShape,
        *,
        weight: float,
        start: float,
        momentum: Momentum = DINO,
        visible: bool = False,
    ) -> None:
        super().__init__(width, head, weight=weight, start=start, momentum=momentum)
        self.visible = visible

    def _make(self, width: int) -> None:
        super()._make(width)
        self.token = nn.Parameter(torch.zeros(width))  # replaces masked patches

    def width_of(self, architecture: Architecture) -> int:
        return architecture.vision.width

    def live(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["mask_indices"]), device=batch["mask_indices"].device)

    def forward(self, encoded: Encoded) -> Tensor:
        mask_indices = encoded["mask_indices"]

        def there(tokens: Tensor) -> Tensor:
            return tokens if self.visible else tokens.take_along_dim(mask_indices[..., None], 1)  # [B, M, D]

        student = there(encoded.masked("global", self.token).tokens)  # [B, M, D]
        teacher = there(encoded.teacher("global").tokens)
        rows = (x.flatten(0, 1)[:, None] for x in (student, teacher))  # a group is a patch
        return self.distil(encoded, *rows) / student.shape[1]
