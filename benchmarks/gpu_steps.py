"""The training steps of `opensiglip bench gpu`, eager and compiled, and the memory of one."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from benchmarks.case import Case
from benchmarks.gpu_setting import OURS, UNKNOWN, Found, Setting
from benchmarks.measure import Variant
from benchmarks.peers import TASKS, naive_captions_step, open_clip_step
from opensiglip.models.model import Model
from opensiglip.objectives.captioning import Caption
from opensiglip.objectives.contrastive import Sigmoid
from opensiglip.training.learner import Learner

NAIVE, OPEN_CLIP = "transformers + naive captions", "open_clip SigLIP"
PARALLEL = 0.5  # of the captions
Paces = dict[str, float]  # images per second of steps that the loader has to keep up with
Make = Callable[[Case], Variant]


def siglip(setting: Setting, paces: Paces, found: Found) -> None:
    """SigLIP's step and open_clip's, eager and compiled."""
    case = setting.case(setting.sizes[0], setting.vocabularies[0])
    variants = every_way(setting, found, f"{OURS} siglip", case, plain)
    variants += every_way(setting, found, OPEN_CLIP, case, open_clip_step)
    found.timed(setting, f"siglip {setting.sizes[0]}", variants, f"{OPEN_CLIP}, eager")
    ours, eager, compiled = map(found.fastest, (OURS, f"{OURS} siglip, eager", f"{OURS} siglip, compiled"))
    found.values["open_clip"] = found.ratio(found.fastest(OPEN_CLIP), ours, OPEN_CLIP)
    found.values["compile"] = found.ratio(eager, compiled, OURS) if setting.compile else "--no-compile was given"
    if ours is not None:
        found.utilise(variants, ours, setting.place)
        found.values["images"] = paces["siglip"] = setting.images / ours.seconds


def larger(setting: Setting, size: str, found: Found) -> None:
    """SigLIP's step of another size."""
    case = setting.case(size, setting.vocabularies[0])
    variants = one_way(setting, found, f"{OURS} siglip", case, plain)
    found.timed(setting, f"siglip {size}", variants)
    if (ours := found.fastest(OURS)) is not None:
        found.utilise(variants, ours, setting.place)


def locca(setting: Setting, vocabulary: int, naive: bool, found: Found) -> None:
    """SigLIP + LocCa's step; with `naive` beside a plain way to write it, eager and compiled."""
    case = setting.case(setting.sizes[0], vocabulary)
    variants = one_way(setting, found, f"{OURS} siglip + locca", case, captioning)
    variants += every_way(setting, found, NAIVE, case, naive_captions_step) if naive else []
    found.timed(setting, f"siglip + locca {setting.sizes[0]}, V {vocabulary}", variants, f"{NAIVE}, eager")
    if (ours := found.fastest(OURS)) is not None:
        found.values["images"] = setting.images / ours.seconds
    found.values["naive"] = found.ratio(found.fastest(NAIVE), ours, NAIVE)


def full(setting: Setting, vocabulary: int, paces: Paces, found: Found) -> None:
    """SigLIP 2's step with all its losses: captions, teacher, masked view, local crops."""
    case = setting.case(setting.sizes[0], vocabulary)
    variants = one_way(setting, found, f"{OURS} siglip2, all", case, lambda some: some.whole_run()[-1])
    found.timed(setting, f"siglip2 {setting.sizes[0]}, V {vocabulary}", variants)
    if (ours := found.fastest(OURS)) is not None:
        found.values["images"] = pace = setting.images / ours.seconds
        paces["siglip2"] = max(pace, paces.get("siglip2", 0.0))


def memory(setting: Setting, vocabulary: int, found: Found) -> None:
    """SigLIP + LocCa's step with and without the head, its activations formed again in backward."""
    case, name = setting.case(setting.sizes[0], vocabulary, setting.batch), f"{OURS} siglip + locca"
    variants = found.tried(name, lambda: checkpointed(case, head=True))
    variants += found.tried(f"{name}, without the head", lambda: checkpointed(case, head=False))
    found.timed(setting, f"memory {setting.sizes[0]}, V {vocabulary}, batch {setting.batch}", variants)
    peaks = [row.peak_mib for row in found.rows]
    if peaks and peaks[0] is None:
        found.values = {"head": UNKNOWN, "step": UNKNOWN}
    elif len(peaks) == 2:
        width = case.networks.decoder.width if case.networks.decoder else 0
        found.values["step"] = (peaks[0] or 0.0) / 1024
        found.values["head"] = beyond(peaks[0], vocabulary * width, without=peaks[1] or 0.0)


def beyond(peak: float | None, weights: int, without: float = 0.0) -> float | str:
    """GiB of a peak in MiB above that of the same `without` the head, and above a float32 gradient of its weights."""
    return UNKNOWN if peak is None else (peak - without) / 1024 - 4 * weights / 2**30


def every_way(setting: Setting, found: Found, name: str, case: Case, make: Make) -> list[Variant]:
    """Eager and compiled."""
    variants = found.tried(f"{name}, eager", lambda: make(case))
    if setting.compile:
        variants += found.tried(f"{name}, compiled", lambda: make(replace(case, compiled=True)))
    return variants


def one_way(setting: Setting, found: Found, name: str, case: Case, make: Make) -> list[Variant]:
    """Compiled, or eager where that is not asked for or does not work."""
    if setting.compile:
        variants = found.tried(f"{name}, compiled", lambda: make(replace(case, compiled=True)))
        if variants:
            return variants
    return found.tried(f"{name}, eager", lambda: make(case))


def plain(case: Case) -> Variant:
    """SigLIP's step."""
    return case.variant(OURS, [Sigmoid()], tasks=0)


def captioning(case: Case) -> Variant:
    """SigLIP + LocCa's."""
    return case.variant(OURS, [Sigmoid(), Caption()], tasks=TASKS, parallel=PARALLEL)


def checkpointed(case: Case, *, head: bool) -> Variant:
    """SigLIP + LocCa's with checkpointing."""
    learner = checkpointed_learner(case, head=head)
    return Variant(OURS, case.ours(learner, case.batch(TASKS, PARALLEL)), items=case.images)


def checkpointed_learner(case: Case, *, head: bool) -> Learner:
    """Networks and losses of that step; without a head its hidden states are summed."""
    learner = Learner(Model.new(case.networks, case.vocabulary), [Sigmoid(), Caption()])
    learner.model.checkpoint_activations()
    if not head:
        assert learner.model.decoder is not None
        learner.model.decoder.vocabulary = NoHead()  # type: ignore[assignment]
    return learner.to(case.place)


class NoHead(nn.Module):
    """In place of a decoder's vocabulary: the sum of the hidden states [M, D], which leads as far back."""

    def forward(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return hidden.float().sum()
