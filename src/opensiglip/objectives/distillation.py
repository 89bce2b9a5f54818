"""Self-distillation: an EMA teacher's scores of whole images, told from crops, and of patches that are hidden."""

import math

import torch
from torch import Tensor, nn

from opensiglip.losses.prototypes import prototype_distillation
from opensiglip.models.ema import Ema, Momentum
from opensiglip.models.heads import Head, HeadShape
from opensiglip.objectives.base import Encoded, Notes, PerExample, Signal
from opensiglip.types import Batch, Reading

STUDENT_TEMPERATURE = 0.1  # DINO and iBOT; SILC's recalled as the same
TEACHER_TEMPERATURE = 0.04
CENTRE_MOMENTUM = 0.9
DINO = Momentum(0.996)
NEAR = 0.01  # of ln K: a teacher's entropy so near 0 or ln K says nothing about the image
SLOW = 50  # steps that a fresh head may take until its teacher tells images apart
SMOOTH = 0.9  # what the mean of the information keeps at each step: one lucky batch does not end a warning


class Distilled(PerExample):
    """A head for the student, its EMA for the teacher, and the centre that keeps the teacher from collapse.

    Teacher: p_t = softmax((z_t - c) / tau_t); c <- 0.9 c + 0.1 mean(z_t) after it was used.    (DINOv2
    loss/dino_clstoken_loss.py:12-100; SILC, Sec. 3.2)
    """

    least_information = 0.2  # share of what the teacher could say about a row, under which it teaches nothing

    def __init__(self, width: int, head: HeadShape, *, weight: float, start: float, momentum: Momentum = DINO) -> None:
        """`width` of the tower; `momentum` of the teacher and of the head's EMA."""
        super().__init__(weight=weight, start=start)
        self.teacher = momentum
        self.head = Head(width, head)
        self.slow_head = Ema(self.head)  # checkpoints call it so
        self.mean_information: float | None = None  # over the last steps; begins anew in a run that is resumed
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(head.prototypes))

    def distil(self, encoded: Encoded, student: Tensor, teacher: Tensor) -> Tensor:
        """The sum over n and l of the cross-entropy of row n, l of student [N, L, D] to the mean of teacher [N, G, D].

        Notes what centre and log need. The scores of all rows are never held.
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
        distinct = min(rows, len(self.centre))  # answers that could be
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
        """The loss is the teacher's entropy and the distance from it, of which only the second is to fall."""
        highest, name = math.log(len(self.centre)), self.name
        return {
            f"loss/{name}": Reading(
                "The teacher's entropy plus the student's distance from it (kl). It may rise as the teacher says more "
                "about each image, which is no divergence: read kl and the teacher's information."
            ),
            f"{name}/kl": Reading("The student's distance from the teacher. It falls, or stays low while both learn."),
            f"{name}/teacher_entropy": Reading(
                f"An alarm from {(1 - NEAR) * highest:.2f} on, where all {len(self.centre)} prototypes are equally "
                f"likely, and below {NEAR * highest:.2f} where every image gets the same one."
            ),
            f"{name}/teacher_information": Reading(
                f"Below {self.least_information:.0%} (dotted) the teacher's answers are nearly the same for all "
                f"images; a warning after {SLOW} steps.",
                self.least_information,
            ),
            f"{name}/prototypes_used": Reading("The share of prototypes in use. Near 0 the teacher has collapsed."),
        }

    def health(self, notes: Notes) -> list[Signal]:
        """Norm of the centre; the teacher's entropy and information, with alarms where images get one answer, or any.

        Information is that of a row about its prototype, H(mean p) - mean H(p), as a share of the most there can be:
        it is 0 at both kinds of collapse, and small long before the entropy reaches either end. Little of it on average
        is only warned of: a fresh tower has none to give.
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
    """From a small crop, predict the teacher's probabilities of a large one.    (SILC, Eq. 3)

    L = -1/B sum_b mean over local views l and global views g of sum_k P_t(g)_k log P_s(l)_k, on the pooled image.
    Reads "global" [B, G, 3, S, S] and "local" [B, L, 3, s, s]. The mean over views, where the papers leave open whether
    it is the sum, is DINO's normalisation.
    """

    name = "local_to_global"

    def live(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["local"]), device=batch["local"].device)

    def forward(self, encoded: Encoded) -> Tensor:
        local, whole = encoded.image("local").pooled, encoded.teacher("global").pooled
        assert local is not None and whole is not None
        student, teacher = (x.unflatten(0, (len(encoded["local"]), -1)) for x in (local, whole))
        return self.distil(encoded, student, teacher) / student.shape[1]


class MaskedPatches(Distilled):
    """At each hidden patch, predict the teacher's probabilities there.    (iBOT; TIPS; SigLIP 2, Sec. 2.3)

    L = -1/B sum_b mean over hidden i of sum_k P_t(i)_k log P_s(i)_k, on patch tokens; the teacher sees the whole view.
    With `visible`, the mean is over all patches, hidden or not (iBOT++ of TIPSv2; that all weigh the same is ours).
    Reads "global" [B, 1, 3, S, S] and "mask_indices" [B, M], places of patches.
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
        self.token = nn.Parameter(torch.zeros(width))  # what stands in place of a hidden patch

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
