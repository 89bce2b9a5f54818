"""`TrainConfig`: what `train` can be told besides the recipe's own keywords; its fields are the flags."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from opensiglip.bounds import Bounds, check_bounds
from opensiglip.data.sources.spec import CACHE_GB
from opensiglip.data.weighting.languages import parse_languages, parse_rule
from opensiglip.data.weighting.sources import parse_weights
from opensiglip.errors import UserError

BoxFormatName = Literal["xyxy", "xywh", "cxcywh", "xyxy-relative", "xywh-relative", "cxcywh-relative"]
OptimizerName = Literal["adamw", "muon", "adafactor"]
SEVERAL = ("data", "example_weights", "keep", "trackers")  # that take several values; Python may give one alone


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Raises UserError, when it is made, on values that are out of range or contradict each other.

    Args:
        data: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl; give it again to mix several.
        out: the run's folder.
        box_format: how folders write boxes: xyxy (corners, the default), xywh or cxcywh (centre, width, height), with
            -relative after it for shares of the image. Of one folder alone: --data DIR:box_format=xywh.
        init: weights to start from: a run, a transformers, open_clip or timm folder or hub id, or a big_vision .npz;
            networks and text pipeline come with it, and what it lacks (a decoder, heads) starts fresh.
        vision: folder or hub id of an image tower of transformers (DINOv2, DINOv3, ViT, ...), instead of the recipe's.
        text: folder or hub id of a sentence encoder (BERT, MiniLM, E5, XLM-R, ...), instead of the recipe's text tower.
        features: folder of cached features of frozen towers, shared by runs; by default FEATURES beside `out`.
        features_gb: most gigabytes of features of a run; one that would need more encodes every batch.
        freeze: towers that are not trained: vision (LiT's), text, both or none; by default none, of `align` both.
        tower_lr: learning rate of the towers that `init` brought, as a share of `lr`.
        lora: train the towers that are not frozen by low-rank matrices of this rank, merged at the end.
        head_ema: of the heads over --vision and --text: share of a moving average of their weights that each step
            keeps, such as 0.98; the average is judged and exported. 0, the default, is none.
        languages: all, or codes such as en or de,fr; by default all that a source has. With weights, such as
            en:0.9,de:0.1, those are the shares of the visits that ask for each language; else all are as often.
        language_weights: temperature:A, for visits that ask for a language by its number of captions to the power of A,
            0 to 1: 1 is as the data has it, 0 all as often.
        tokenizer: folder, tokenizer.json or hub id; by default one is trained on the data.
        vocabulary: most entries of the tokenizer that is trained.
        steps: optimizer steps.
        epochs: passes over the data, instead of steps (1 if neither is given).
        batch_size: images of the global batch, over all ranks and parts.
        accumulate: parts that a rank's share of the batch is encoded in; the gradient is that of the whole.
        lr: peak learning rate.
        warmup: steps of linear warm-up; by default 5 % of all.
        weight_decay: decoupled, on matrices only; big_vision's 1e-4 at lr 1e-3 is 0.1 here.
        betas: what the averages of gradient and square keep at each step (Adafactor: at most); SigLIP found the second
            necessary for stability.
        optimizer: adamw, muon (linear layers by Muon with half of AdamW's memory, the rest by AdamW) or adafactor
            (big_vision's: a factored second moment and a momentum in bfloat16, a quarter of AdamW's memory).
        clip_norm: largest norm of the gradient.
        seed: of weights and of every random choice in the data.
        keep_tokens: share of an image's patches that the tower reads, drawn for each visit; a cheaper step (FLIP).
        token_mask: which: random (the default), block (a part of the image) or grid (spread evenly).
        full_from: share of training from which on all are read, and boxes learned; by default 0.9, and 1 is never.
        precision: auto, fp32, bf16 or fp16.
        compile: the step by torch.compile: minutes at the start, worth it on GPUs; CPUs gain a few per cent.
        memory_check: refuse a run that needs more memory than is free, by estimate.
        shard: each rank keeps a slice of weights, gradient and optimizer state, by FSDP2; same numbers, less memory.
        checkpointing: keep no activations inside layers: a third more arithmetic, a fraction of the memory.
        workers: data processes of each rank; by default one less than its share of the cores, 8 at most.
        continue_from: a run, or one of its checkpoints, to go on from with its weights, optimizer and schedule, at
            90 % of training for NaFlex, else at 95 %. On the command line, what is not given is as it was there.
        trust: run the Python files that the run of `continue_from`, or of --config, names as its tasks or data.
        resume: go on from the newest checkpoint in `out`.
        changed: allow a resumed run to differ in its arguments or data (the differences are printed).
        cache_gb: gigabytes of this node's disk for shards that are fetched from object stores and web servers.
        data_weights: shares of the sources, where no --data says =WEIGHT: size (of each its number of examples), equal,
            or temperature:A (that number to the power of A, 0 to 1; 0.5 is between the two).
        example_weights: a parquet file with a column `weight` for each --data, in their order, a row for each of its
            training examples: how often an epoch has it, 0 for never; `none` for a source without. `opensiglip data
            balance` and `data dedup` write such files.
        keep: shares of training, such as 0.9, after which a checkpoint is saved that stays, to continue from.
        keep_last: newest checkpoints that stay.
        keep_best: the metric, such as eval/retrieval/image_to_text_r1, whose best judgement's checkpoint stays too.
        patience: judgements without a better `keep_best` after which training ends.
        save_every: steps between checkpoints; one is also saved whenever ten minutes have passed.
        log_every: steps between rows of metrics.jsonl, from step 200 on; every step before.
        held_out: examples of the held-out split to judge the result on; 0 skips it.
        eval_every: steps between judgements on those examples while training, logged as eval/...; 0 for none.
        set_aside: images of the first source's training split that are not trained on: `eval_every` judges on them
            instead, so that `keep_best` chooses without the held-out split; 0 for none.
        curate: train on the examples of a larger super-batch that score best together: learnability (the learner's loss
            minus the reference's, SigLIP 2 Sec. 2.5), easy-reference (minus the reference's) or learner (its own).
        reference: the SigLIP that scores beside the learner, or teaches it: whatever --init takes; it is not trained.
        filter: share of the super-batch that is left out: of so many images, --batch-size / (1 - filter), each step
            trains on --batch-size; by default 0.5, siglip2_acid at patches of 32 pixels 0.75.
        chunks: parts in which they are drawn, each given those before.
        distil: add the cross-entropy of the batch's pairs with the reference's: softmax (open_clip's, ACED's) or
            sigmoid; with --curate, too.
        distil_weight: of that term.
        trackers: tensorboard, wandb, trackio, ...: whatever Accelerate knows and is installed.
    """

    data: tuple[str, ...]
    out: Path
    box_format: BoxFormatName | None = None
    init: str | None = None
    vision: str | None = None
    text: str | None = None
    features: Path | None = None
    features_gb: Annotated[float, Bounds(at_least=0)] = 50.0
    freeze: Literal["vision", "text", "both", "none"] | None = None
    tower_lr: Annotated[float, Bounds(more_than=0)] = 1.0
    lora: Annotated[int | None, Bounds(at_least=1)] = None
    head_ema: Annotated[float, Bounds(at_least=0, less_than=1)] = 0.0
    languages: str | None = None
    language_weights: str | None = None
    tokenizer: str | None = None
    vocabulary: Annotated[int, Bounds(at_least=258, at_most=2**22)] = 8192  # the 256 bytes, pad and eos at least
    steps: Annotated[int | None, Bounds(at_least=1, at_most=2**32)] = None
    epochs: Annotated[float | None, Bounds(more_than=0, at_most=1e6)] = None
    batch_size: Annotated[int, Bounds(at_least=1, at_most=2**24)] = 128
    accumulate: Annotated[int, Bounds(at_least=1, at_most=2**24)] = 1
    lr: Annotated[float, Bounds(more_than=0)] = 1e-3
    warmup: Annotated[int | None, Bounds(at_least=0, at_most=2**32)] = None
    weight_decay: Annotated[float, Bounds(at_least=0)] = 0.1
    betas: Annotated[tuple[float, float], Bounds(at_least=0, less_than=1)] = (0.9, 0.95)
    optimizer: OptimizerName = "adamw"
    clip_norm: Annotated[float, Bounds(more_than=0)] = 1.0
    seed: Annotated[int, Bounds(at_least=0, at_most=2**32 - 1)] = 0
    keep_tokens: Annotated[float, Bounds(more_than=0, at_most=1)] = 1.0
    token_mask: Literal["random", "block", "grid"] | None = None
    full_from: Annotated[float | None, Bounds(more_than=0, at_most=1)] = None
    precision: str = "auto"
    compile: bool = False
    memory_check: bool = True
    shard: bool = False
    checkpointing: bool = False
    workers: Annotated[int | None, Bounds(at_least=0, at_most=1024)] = None
    continue_from: str | None = None
    trust: bool = False
    resume: bool = False
    changed: bool = False
    cache_gb: Annotated[float, Bounds(more_than=0)] = CACHE_GB
    data_weights: str | None = None
    example_weights: tuple[str, ...] = ()
    keep: Annotated[tuple[float, ...], Bounds(more_than=0, less_than=1)] = ()
    keep_last: Annotated[int, Bounds(at_least=1)] = 2
    keep_best: str | None = None
    patience: Annotated[int | None, Bounds(at_least=1)] = None
    save_every: Annotated[int, Bounds(at_least=1)] = 1000
    log_every: Annotated[int, Bounds(at_least=1)] = 10
    held_out: Annotated[int, Bounds(at_least=0)] = 500
    eval_every: Annotated[int, Bounds(at_least=0)] = 0
    set_aside: Annotated[int, Bounds(at_least=0)] = 0
    curate: Literal["learnability", "easy-reference", "learner"] | None = None
    reference: str | None = None
    filter: Annotated[float | None, Bounds(more_than=0, less_than=1)] = None
    chunks: Annotated[int, Bounds(at_least=1)] = 16
    distil: Literal["softmax", "sigmoid"] | None = None
    distil_weight: Annotated[float, Bounds(more_than=0)] = 1.0
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in SEVERAL:
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str | int | float | Path) else tuple(value))
        for name in ("data", "example_weights"):
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "out", Path(self.out))
        check_bounds(TrainConfig, vars(self))
        if self.data_weights is not None:
            parse_weights(self.data_weights, self.data)
        if not self.data:
            raise UserError("--data is missing; give `scenes` or a folder with metadata.jsonl.")
        parse_languages(self.languages)
        parse_rule(self.language_weights, self.languages)
        if self.example_weights and len(self.example_weights) != len(self.data):
            raise UserError(
                f"--example-weights names {len(self.example_weights)} file(s) for {len(self.data)} --data; give one "
                "for each, in their order, and `none` for a source without."
            )
        self._check_curation()
        if self.shard and self.compile:
            raise UserError("--shard and --compile do not go together; leave one out.")
        if self.eval_every and not (self.held_out or self.set_aside):
            raise UserError("--eval-every needs examples to judge on; give --held-out or --set-aside too.")
        if self.set_aside and not self.eval_every:
            raise UserError("--set-aside is for judgements while training; give --eval-every too.")
        if self.keep_best is not None and not self.eval_every:
            raise UserError("--keep-best needs judgements while training; give --eval-every too.")
        if self.patience is not None and self.keep_best is None:
            raise UserError("--patience waits for a better --keep-best; give it too.")
        if self.steps is not None and self.epochs is not None:
            raise UserError("--steps and --epochs both say how long to train; give one.")
        if self.init is not None and self.continue_from is not None:
            raise UserError("--init and --continue-from both say where to start from; give one.")
        if self.init is not None and (self.vision or self.text):
            raise UserError("--init and --vision or --text both say where towers come from; give one.")
        if not (self.init or self.vision or self.text) and (self.freeze or self.lora or self.tower_lr != 1):
            raise UserError("--freeze, --tower-lr and --lora are for weights of --init, --vision or --text; give one.")

    def _check_curation(self) -> None:
        if self.curate is None and self.filter is not None:
            raise UserError("--filter is of a run that chooses its examples; give --curate too.")
        if self.curate is None and self.distil is None and self.reference is not None:
            raise UserError(
                "--reference is of a run that chooses its examples, or is taught; give --curate or --distil."
            )
        if self.distil is None and self.distil_weight != 1:
            raise UserError("--distil-weight is of a run that a reference teaches; give --distil too.")
        if self.distil is not None and self.reference is None:
            raise UserError(f"--distil {self.distil} is taught by a trained SigLIP; give --reference too.")
        if self.curate in ("learnability", "easy-reference") and self.reference is None:
            raise UserError(f"--curate {self.curate} scores by a trained SigLIP; give --reference too.")
        if self.curate == "learner" and self.distil is None and self.reference is not None:
            raise UserError("--curate learner scores by the learner alone; leave out --reference.")
        if self.curate is not None and self.shard:
            raise UserError("--curate and --shard do not go together; leave one out.")

    @property
    def super_batch(self) -> int:
        """Images that a step reads: those it trains on, and where it curates those it leaves out. Raises UserError."""
        if self.curate is None:
            return self.batch_size
        assert self.filter is not None, "the recipe has said it by now"
        size = self.batch_size / (1 - self.filter)
        if abs(size - round(size)) > 1e-6 * size:
            raise UserError(
                f"--batch-size {self.batch_size} / (1 - --filter {self.filter}) is {size:.2f}, no whole number of "
                "images; give another --filter, such as 0.5 or 0.75."
            )
        return round(size)

    @property
    def features_folder(self) -> Path:
        """Where features of frozen towers are cached."""
        return self.features or self.out.parent / "features"

    @classmethod
    def part(cls, keywords: dict[str, Any]) -> tuple["TrainConfig", dict[str, Any]]:
        """The config, and the keywords that are left for the recipe, of `train`'s keywords. Raises UserError."""
        own = {field.name for field in fields(cls)}
        rest = {name: value for name, value in keywords.items() if name not in own}
        return cls(**{name: value for name, value in keywords.items() if name in own}), rest

    def to_json(self) -> dict[str, Any]:
        """Plain values of all fields but `out`, which names the place that they are written to."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "out"}
        values = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
