"""The studies that come with OpenSigLIP, by name."""

from typing import Any

from opensiglip.evaluation.benchmark import ProbeConfig
from opensiglip.models.sizes import Shape
from studies.ablations import BATCH, PARALLEL
from studies.cheaper import KEEP, OPTIMIZERS, SCHEDULES
from studies.languages import LANGUAGE_STUDY, PHOTO_LANGUAGES
from studies.negatives import NEGATIVES
from studies.photographs import PHOTOGRAPHS
from studies.regions import REGIONS
from studies.representations import NESTED, TIPS2
from studies.settings import AUTO, EASY, LARGER, MUON, QUICK, SMALL, TINIER
from studies.study import Budget, Figure, Run, Study


def budgets(steps: int, gpu_steps: int, probe: ProbeConfig, **flags: Any) -> dict[str, Budget]:
    """The two presets: the steps of each run, the decoder probe, and further flags of all runs.

    The probe has few examples: from many it learns to see by itself and reads an untrained encoder nearly as well.
    """
    judge = {"count": 500, "train_count": 1000, "probe": probe}
    return {
        "cpu-hour": Budget(SMALL | flags | {"steps": steps}, judge),
        "gpu-10min": Budget(LARGER | flags | {"steps": gpu_steps}, judge),
    }


OBJECTIVES = Study(
    name="objectives",
    question="Contrastive, captioning or both: which objective names objects, and which describes them?",
    about=(
        "SigLIP is contrastive, Cap writes captions, CoCa does both with one text decoder. Zero-shot accuracy uses the "
        "similarity of image and name for contrastive models, and the likelihood of the name as a caption for "
        "captioning models. For the last column a new decoder learns captions and boxes on each frozen encoder, so "
        "SigLIP has a figure for captions as well. `untrained` is an encoder after one step, for comparison."
    ),
    data=EASY.format(1),
    runs=(
        Run("untrained", "cap", {"steps": 1}),
        Run("contrastive", "siglip", AUTO),
        Run("captioning", "cap"),
        Run("both", "coca", {"queries": 16}),
    ),
    figures=(
        Figure("zeroshot", "accuracy", "zero-shot, similarity", ("contrastive", "both"), "CoCa (Table 8)"),
        Figure("zeroshot", "accuracy_likelihood", "zero-shot, likelihood"),
        Figure("captioning", "cider_greedy", "captions, CIDEr"),
        Figure(
            "decoder_probe",
            "captioning_cider_greedy",
            "a new decoder's captions, CIDEr",
            ("contrastive", "captioning", "both"),
            "CoCa (Table 8, VQA)",
        ),
    ),
    budgets=budgets(3000, 1500, ProbeConfig(600, ("cap", "aref"))),
)

LOCALIZATION = Study(
    name="localization",
    question="Which objective gives an encoder that encodes where objects are?",
    about=(
        "Each recipe trains its encoder. The rest of the model is discarded, the encoder is frozen, and a new decoder "
        "of six layers learns to answer a phrase with its box: the protocol of SigLIP 2's Table 5. The figures are "
        "the share of phrases found at IoU 0.5, and the mean IoU. `untrained` is an encoder after one step: it shows "
        "what such a decoder reads from any encoder whose patches differ."
    ),
    data=EASY.format(2),
    runs=(
        Run("untrained", "cap", {"steps": 1}),
        Run("cap", "cap"),
        Run("cappa", "cappa"),
        Run("siglip", "siglip", AUTO),
        Run("siglip2", "siglip2", AUTO),
        Run("locca", "locca"),
    ),
    figures=(
        Figure(
            "decoder_probe",
            "grounding_accuracy",
            "phrases found",
            ("cap", "cappa", "siglip", "siglip2", "locca"),
            "SigLIP 2 (Table 5)",
        ),
        Figure("decoder_probe", "grounding_mean_iou", "mean IoU"),
    ),
    budgets=budgets(2400, 1000, ProbeConfig(800, ("aref",))),
)

FIVE = ("caption", "aref", "gcap", "answer", "count")
TASKS = Study(
    name="tasks",
    question="One decoder on five tasks, or five decoders on one task each?",
    about=(
        "Six runs of the recipe `tasks`, which is PaLI's text interface on CapPa's decoder. The first run is asked all "
        "five tasks for every image, each of the others one. All runs see the same number of images, and each task "
        "gets the same number of questions in both cases."
    ),
    data=EASY.format(2),
    runs=(
        Run("all", "tasks", {"tasks": ",".join(FIVE), "texts": len(FIVE)}),
        *(Run(f"only-{task}", "tasks", {"tasks": task, "texts": 1}) for task in FIVE),
    ),
    figures=(
        Figure("answers", "caption_cider", "caption, CIDEr", ("only-caption", "all")),
        Figure("answers", "aref_accuracy", "aref, found", ("only-aref", "all")),
        Figure("answers", "gcap_exact_match", "gcap, exact", ("only-gcap", "all")),
        Figure("answers", "answer_exact_match", "answer, exact", ("only-answer", "all")),
        Figure("answers", "count_exact_match", "count, exact", ("only-count", "all")),
    ),
    budgets=budgets(800, 400, ProbeConfig(), **MUON),
)

# A small encoder of a better objective against Cap's tiny one; each objective's tiny encoder against its small one.
BETTER = (("cap-tiny", "siglip-small"), ("cap-tiny", "locca-small"))
SIZES = (("cap-small", "cap-tiny"), ("siglip-small", "siglip-tiny"), ("locca-small", "locca-tiny"))
# Half a million weights; the probe's own decoder has 1.6 M. The difference is about that of the two encoders.
SMALLER = Shape(width=96, depth=3, mlp=384, heads=4)
ENCODERS = Study(
    name="encoders",
    question="How much does a better encoder save?",
    about=(
        "Six frozen encoders, three objectives each at size tiny (1.2 M weights) and `small` (0.2 M), are each read by "
        "two new decoders of 1.6 M and 0.5 M weights. A small encoder with the larger decoder and a tiny encoder with "
        "the smaller decoder have equally many weights in all: the columns `equal total` compare them. If a small "
        "encoder of one objective does as well as a large one of another, the objective has saved the difference in "
        "size. This is PaLI-3's argument for SigLIP's encoder in place of a larger one."
    ),
    data=EASY.format(2),
    runs=tuple(
        Run(f"{recipe}-{kind}", recipe, flags | size)
        for kind, size in (("small", {"size": "64x4x256x2/8"}), ("tiny", {"size": "tiny"}))
        for recipe, flags in (("cap", {}), ("siglip", AUTO), ("locca", {}))
    ),
    figures=tuple(
        Figure("decoder_probe", f"{prefix}{metric}", f"{title}, {decoder}", pairs=pairs, by_run=by_run)
        for metric, title in (("captioning_cider_greedy", "CIDEr"), ("grounding_accuracy", "phrases"))
        for decoder, prefix, pairs, by_run in (
            ("larger decoder", "", BETTER, {}),
            ("smaller decoder", "smaller_", BETTER, {}),
            (
                "equal total",
                "",
                SIZES,
                {f"{recipe}-tiny": f"smaller_{metric}" for recipe in ("cap", "siglip", "locca")},
            ),
        )
    ),
    budgets=budgets(800, 400, ProbeConfig(800, ("cap", "aref"), SMALLER), **MUON),
)

STAGE = 0.8  # share of training after which SigLIP 2's last stage begins
# A stage with so few steps at so low a rate needs other settings than the paper's (docs/studies/distillation.md).
SHORT: dict[str, Any] = {"masked_weight": 2.0, "prototypes": 256}
STAGED: dict[str, Any] = SMALL | AUTO | SHORT | {"resolution": 64, "steps": 500, "keep": (STAGE,)}
DISTILLATION = Study(
    name="distillation",
    question="Does the last stage of SigLIP 2 help the patches?",
    about=(
        "`without` is SigLIP 2 with the sigmoid and caption losses alone. `with` continues from its checkpoint at 80 % "
        "of training and adds self-distillation and masked prediction, for the same steps on the same images. Both "
        "are evaluated by k-NN without training: each patch of a held-out scene gets the class of the majority of the "
        "20 most similar patches of training scenes. Masked prediction has weight 2 and the heads have 256 "
        "prototypes. These values are ours: at the paper's weights a stage of 100 steps changes too little."
    ),
    data=EASY.format(1),
    runs=(
        Run("without", "siglip2", {"distill_start": 1.0}),
        Run("with", "siglip2", {"distill_start": STAGE}, after="without"),
    ),
    figures=(
        Figure("probes", "segmentation: knn_iou", "patches by k-NN, IoU", ("without", "with"), "SigLIP 2 (Sec. 2.3)"),
        Figure("probes", "segmentation: knn_accuracy", "patches by k-NN, accuracy", ("without", "with")),
    ),
    budgets={
        "cpu-hour": Budget(STAGED, {"count": 1000, "train_count": 300}),
        "gpu-10min": Budget(STAGED | {"batch_size": 256, "steps": 2000}, {"count": 1000, "train_count": 1000}),
    },
)

WAYS: dict[str, dict[str, Any]] = {  # ways to select half of each super-batch
    "learnability": {"curate": "learnability"},
    "low-resolution": {"curate": "learnability", "score_resolution": 16},
    "static": {"curate": "easy-reference", "chunks": 1},  # scores each example by the reference alone
    "learner": {"curate": "learner"},
}


def curation(percent: int) -> Study:
    """This percentage of the captions is exchanged; curated runs take 0.6 times the steps of the uncurated one."""
    wrong = f"exchanged={percent / 100}"
    return Study(
        name=f"curation-{percent}",
        question=f"Does curation save steps if {percent} % of the captions are wrong?",
        about=(
            f"In the training scenes {percent} % of the captions belong to another scene. `uncurated` trains on all "
            "scenes. The others take 0.6 times its steps and select half of each super-batch: `learnability` by the "
            "learner's loss minus the reference's, in 16 chunks (SigLIP 2, Sec. 2.5), `low-resolution` likewise with "
            "the learner's loss on images of half the side (Flexi-JEST), `static` each example by the "
            "reference's loss alone, `learner` by the learner's own loss. `reference` is trained on correct captions. "
            "The summary.json of each run lists what it selected, under `curated`."
        ),
        data=EASY.format(1)
        + ",count=8000",  # seen twice in a curated run, so that the reference is read from its cache
        runs=(
            Run("reference", "siglip", AUTO, share=1.5),
            Run("uncurated", "siglip", AUTO, options=wrong),
            *(
                Run(
                    way,
                    "siglip",
                    AUTO | flags,
                    reference=None if way == "learner" else "reference",
                    share=0.6,
                    options=wrong,
                )
                for way, flags in WAYS.items()
            ),
        ),
        figures=(
            Figure("zeroshot", "accuracy", "zero-shot accuracy", against="uncurated"),
            Figure("retrieval", "image_to_text_r1", "image to text, R@1", against="uncurated"),
        ),
        budgets={
            "cpu-hour": Budget(QUICK | {"steps": 400}, {"count": 500}),
            "gpu-10min": Budget(LARGER | {"steps": 1000}, {"count": 500}),
        },
    )


TOKENS = Study(
    name="token-classification",
    question="Does predicting the caption's tokens help a small batch?",
    about=(
        "SigLIP alone, and with SuperCLIP's term of weight 1: one linear layer predicts from the image's mean token "
        "which tokens are in the caption. SuperCLIP reports that the term compensates for a small batch; here it is 64."
    ),
    data="scenes:drawings=200,objects=5,languages=en",
    runs=(Run("without", "siglip", AUTO), Run("with", "siglip", AUTO | {"token_weight": 1.0})),
    figures=(
        Figure("retrieval", "image_to_text_r1", "image to text, R@1", ("without", "with"), "SuperCLIP"),
        Figure("retrieval", "text_to_image_r1", "text to image, R@1", ("without", "with"), "SuperCLIP"),
    ),
    budgets={
        "cpu-hour": Budget(TINIER | {"batch_size": 64, "steps": 960}, {"count": 500}),
        "gpu-10min": Budget(LARGER | {"batch_size": 64, "steps": 4000}, {"count": 500}),
    },
)

_FIRST = (OBJECTIVES, LOCALIZATION, TASKS, ENCODERS, DISTILLATION, curation(30), curation(60), TOKENS)
_MORE = (
    OPTIMIZERS,
    KEEP,
    SCHEDULES,
    LANGUAGE_STUDY,
    PHOTO_LANGUAGES,
    NEGATIVES,
    REGIONS,
    PHOTOGRAPHS,
    BATCH,
    PARALLEL,
    NESTED,
    TIPS2,
)
STUDIES = {study.name: study for study in (*_FIRST, *_MORE)}
