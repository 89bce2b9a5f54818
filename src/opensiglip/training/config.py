"""`TrainConfig`: the arguments of `train` besides the recipe's own keywords; its fields are the flags."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from opensiglip.bounds import Bounds, check_bounds
from opensiglip.data.sources.spec import CACHE_GB
from opensiglip.data.weighting.languages import parse_languages, parse_rule
from opensiglip.data.weighting.sources import parse_weights
from opensiglip.errors import UserError

BoxFormatName = Literal["xyxy", "xywh", "cxcywh", "xyxy-relative", "xywh-relative", "cxcywh-relative"]
OptimizerName = Literal["adamw", "muon", "adafactor", "schedule-free-adamw"]
SEVERAL = ("data", "example_weights", "keep", "trackers")  # take several values; a Python caller may give a single one


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Arguments of a run. Raises UserError if values are out of range or contradict each other.

    Args:
        data: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl; repeat the flag to mix several.
        out: the run's folder.
        box_format: box format of folders: xyxy (corners, the default), xywh or cxcywh (centre, width, height); with
            -relative, fractions of the image. For one folder only: --data DIR:box_format=xywh.
        init: weights to start from: a run, a transformers, open_clip or timm folder or hub id, or a big_vision .npz. It
            also sets the networks and the text pipeline; parts that it lacks (a decoder, heads) are initialised anew.
        vision: folder or hub id of a transformers image tower (DINOv2, DINOv3, ViT, ...) in place of the recipe's.
        text: folder or hub id of a sentence encoder (BERT, MiniLM, E5, XLM-R, ...) in place of the recipe's text tower.
        features: folder for cached features of frozen towers, shared by runs; by default FEATURES beside `out`.
        features_gb: largest size of a run's features in gigabytes; a run that needs more encodes every batch.
        freeze: towers that are not trained: vision (as in LiT), text, both or none; by default none, for `align` both.
        tower_lr: learning rate of the pretrained towers, as a fraction of `lr`.
        lora: train the towers that are not frozen through low-rank matrices of this rank, merged at the end.
        head_ema: decay of a moving average of the heads over --vision and --text, such as 0.98; the average is
            evaluated and exported. 0, the default, turns it off.
        languages: all, or codes such as en or de,fr; by default all languages of the source. With weights, such as
            en:0.9,de:0.1, they are the shares of the visits that ask for each language; without, all are equal.
        language_weights: temperature:A draws languages by their number of captions to the power A, from 0 to 1: 1 keeps
            the proportions of the data, 0 makes all languages equal.
        tokenizer: folder, tokenizer.json or hub id; by default a tokenizer is trained on the data.
        vocabulary: largest vocabulary of the tokenizer that is trained.
        steps: optimizer steps.
        epochs: passes over the data, instead of steps (1 if neither is given).
        batch_size: images per global batch, over all ranks and parts.
        accumulate: number of parts in which a rank encodes its share of the batch; the gradient is that of the whole
            batch.
        lr: peak learning rate.
        warmup: steps of linear warm-up; by default 5 % of all steps.
        weight_decay: decoupled, on matrices only; big_vision's 1e-4 at lr 1e-3 corresponds to 0.1 here.
        betas: decay of the moving averages of the gradient and its square (Adafactor: upper limits); SigLIP found the
            second value necessary for stability.
        optimizer: adamw; muon (Muon for linear layers with half of AdamW's memory, AdamW for the rest); adafactor
            (big_vision's: factored second moment, momentum in bfloat16, a quarter of AdamW's memory); or
            schedule-free-adamw (no decay of the rate; an average of the weights is evaluated and saved).
        clip_norm: largest norm of the gradient.
        seed: seed of the weights and of every random choice in the data.
        keep_tokens: fraction of an image's patches that the tower reads, drawn for each visit; makes a step cheaper
            (FLIP).
        token_mask: patches to keep: random (the default), block (a part of the image) or grid (spread evenly).
        full_from: fraction of training from which on all patches are read and boxes are learned; by default 0.9; 1 is
            never.
        precision: auto, fp32, bf16 or fp16.
        compile: compile the step with torch.compile. It takes minutes at the start and pays off on GPUs; CPUs gain a
            few per cent.
        memory_check: refuse a run whose estimated memory is not free; --no-memory-check starts it anyway.
        shard: each rank keeps a shard of weights, gradient and optimizer state (FSDP2): same results, less memory.
        checkpointing: recompute activations inside layers in the backward pass: a third more compute, a fraction of the
            memory.
        workers: data processes per rank; by default one less than its share of the cores, at most 8.
        continue_from: a run, or one of its checkpoints, to continue with its weights, optimizer and schedule, from 90 %
            of training for NaFlex, else from 95 %. On the command line, flags that are not given keep that run's
            values.
        trust: run the Python files that the run of `continue_from` or --config names as its tasks or data.
        resume: continue from the newest checkpoint in `out`.
        changed: allow a resumed run to differ in its arguments or data (the differences are printed).
        cache_gb: gigabytes of local disk for shards that are fetched from object stores and web servers.
        data_weights: shares of the sources without =WEIGHT in --data: size (their numbers of examples), equal, or
            temperature:A (those numbers to the power A, from 0 to 1; 0.5 is in between).
        example_weights: for each --data, in order, a parquet file with a column `weight` and a row for each training
            example: how often an epoch has it, 0 for never. `none` stands for a source without weights. `opensiglip
            data balance` and `data dedup` write such files.
        keep: fractions of training, such as 0.9, at which a checkpoint is saved and kept, to continue from.
        keep_last: number of newest checkpoints to keep.
        keep_best: metric, such as eval/retrieval/image_to_text_r1, whose best checkpoint is kept, too.
        patience: evaluations without a better `keep_best` after which training ends.
        save_every: steps between checkpoints; one is also saved whenever ten minutes have passed.
        log_every: steps between rows of metrics.jsonl, from step 200 on; before that every step has a row.
        held_out: examples of the held-out split for the final evaluation; 0 skips it.
        eval_every: steps between evaluations on the held-out examples during training, logged as eval/...; 0 for none.
        set_aside: images of the first source's training split to keep out of training. `eval_every` evaluates on them,
            so that `keep_best` does not use the held-out split; 0 for none.
        curate: train on the examples of a larger super-batch with the highest joint score: learnability (the learner's
            loss minus the reference's, SigLIP 2 Sec. 2.5), easy-reference (minus the reference's loss) or learner (the
            learner's loss).
        reference: SigLIP model, in any format of --init, that scores examples or is distilled from; it is not trained.
        teacher: SigLIP model that is distilled from while --reference only scores examples (ACED's second teacher).
        filter: fraction of the super-batch that is left out. A super-batch has --batch-size / (1 - filter) images, of
            which each step trains on --batch-size. By default 0.5; for siglip2_acid with patches of 32 pixels 0.75.
        chunks: number of chunks in which examples are drawn, each conditioned on the earlier ones.
        score_resolution: pixels of a side at which the learner sees images while it scores a super-batch; it trains on
            the selected examples at full size. By default full size.
        score_precision: fp32 or bf16 for the learner's scores; by default the run's precision.
        distil: add the cross-entropy between the learner's and the reference's predictions for the pairs of the batch:
            softmax (as in open_clip and ACED) or sigmoid; also works with --curate.
        distil_weight: weight of the distillation term.
        trackers: tensorboard, wandb, trackio, ...: any tracker that Accelerate supports and that is installed.
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
    teacher: str | None = None
    filter: Annotated[float | None, Bounds(more_than=0, less_than=1)] = None
    chunks: Annotated[int, Bounds(at_least=1)] = 16
    score_resolution: Annotated[int | None, Bounds(at_least=1)] = None
    score_precision: Literal["fp32", "bf16"] | None = None
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
            raise UserError("--shard and --compile can't be combined; leave one out.")
        if self.eval_every and not (self.held_out or self.set_aside):
            raise UserError("--eval-every needs examples to evaluate on; give --held-out or --set-aside too.")
        if self.set_aside and not self.eval_every:
            raise UserError("--set-aside is for evaluations during training; give --eval-every too.")
        if self.keep_best is not None and not self.eval_every:
            raise UserError("--keep-best needs evaluations during training; give --eval-every too.")
        if self.patience is not None and self.keep_best is None:
            raise UserError("--patience needs --keep-best; give it too.")
        if self.steps is not None and self.epochs is not None:
            raise UserError("--steps and --epochs both set the length of training; give one.")
        if self.init is not None and self.continue_from is not None:
            raise UserError("--init and --continue-from both set the start; give one.")
        if self.init is not None and (self.vision or self.text):
            raise UserError("--init and --vision or --text both set the towers; give one.")
        if not (self.init or self.vision or self.text) and (self.freeze or self.lora or self.tower_lr != 1):
            raise UserError("--freeze, --tower-lr and --lora are for weights of --init, --vision or --text; give one.")

    def _check_curation(self) -> None:
        if self.curate is None and self.filter is not None:
            raise UserError("--filter is for runs that select their examples; give --curate too.")
        if self.curate is None and self.distil is None and self.reference is not None:
            raise UserError("--reference is for runs with --curate or --distil; give one of them.")
        if self.distil is None and self.distil_weight != 1:
            raise UserError("--distil-weight is for runs with --distil; give it too.")
        if self.distil is not None and self.reference is None:
            raise UserError(f"--distil {self.distil} needs a trained SigLIP; give --reference too.")
        if self.teacher is not None and (self.distil is None or self.curate in (None, "learner")):
            raise UserError(
                "--teacher is distilled from while --reference scores: give --distil and --curate learnability or "
                "easy-reference too, or name it by --reference."
            )
        if self.curate in ("learnability", "easy-reference") and self.reference is None:
            raise UserError(f"--curate {self.curate} scores with a trained SigLIP; give --reference too.")
        if self.curate == "learner" and self.distil is None and self.reference is not None:
            raise UserError("--curate learner scores with the learner alone; leave out --reference.")
        scoring = {"--score-resolution": self.score_resolution, "--score-precision": self.score_precision}
        if self.curate in (None, "easy-reference") and (given := [flag for flag, value in scoring.items() if value]):
            raise UserError(f"{given[0]} is for runs that score by the learner; give --curate learnability or learner.")
        if self.score_resolution is not None and self.keep_tokens < 1:
            raise UserError("--score-resolution needs all patches of an image; leave it out, or --keep-tokens.")
        if self.curate is not None and self.shard:
            raise UserError("--curate and --shard can't be combined; leave one out.")

    @property
    def super_batch(self) -> int:
        """Images that a step reads: those it trains on, and where it curates those it leaves out. Raises UserError."""
        if self.curate is None:
            return self.batch_size
        assert self.filter is not None, "the recipe has said it by now"
        size = self.batch_size / (1 - self.filter)
        if abs(size - round(size)) > 1e-6 * size:
            raise UserError(
                f"--batch-size {self.batch_size} / (1 - --filter {self.filter}) is {size:.2f}, which is not a whole "
                "number of images; give another --filter, such as 0.5 or 0.75."
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
