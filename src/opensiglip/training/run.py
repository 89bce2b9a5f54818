"""`train`: a recipe and data in, a run folder out."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from opensiglip.checkpoints.fit import fit
from opensiglip.checkpoints.formats.own import begin as begin_model
from opensiglip.checkpoints.formats.own import read_pipeline
from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.example import Source
from opensiglip.data.fields.captions import task_words
from opensiglip.data.loader import DataPlan
from opensiglip.data.sources.registry import open_source, with_box_format
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError
from opensiglip.models import lora as low_rank
from opensiglip.models.model import Model
from opensiglip.optim import adamw
from opensiglip.recipes import Recipe
from opensiglip.training.bounds import check_numbers
from opensiglip.training.continued import origin, take_over
from opensiglip.training.finish import finish, of_run
from opensiglip.training.held_out import Judgement
from opensiglip.training.learner import Learner
from opensiglip.training.loop import Loop
from opensiglip.training.memory import keep_freed_memory
from opensiglip.training.opening import opening
from opensiglip.training.precision import choose, multiply
from opensiglip.training.record import build, check, claim, command, differences, find, record, resolved, stored
from opensiglip.training.start import adopt, follow, hold, slower, tokenizer_of, told, train_within


def train(
    recipe: str,
    *,
    data: Sequence[str],
    out: str | Path,
    box_format: str | None = None,
    init: str | None = None,
    freeze: Literal["vision", "text", "both"] | None = None,
    tower_lr: float = 1.0,
    lora: int | None = None,
    languages: str | None = None,
    tokenizer: str | None = None,
    vocabulary: int = 8192,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 128,
    accumulate: int = 1,
    lr: float = 1e-3,
    warmup: int | None = None,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    seed: int = 0,
    precision: str = "auto",
    compile: bool = False,
    checkpointing: bool = False,
    workers: int | None = None,
    continue_from: str | None = None,
    resume: bool = False,
    changed: bool = False,
    keep: Sequence[float] = (),
    save_every: int = 1000,
    log_every: int = 10,
    held_out: int = 500,
    eval_every: int = 0,
    trackers: Sequence[str] = (),
    **keywords: Any,
) -> dict[str, Any]:
    """Train a recipe on data and leave a run folder: checkpoints, model, metrics, summary and report.

    Raises UserError on bad input, before anything is written.

    Args:
        recipe: a name that `opensiglip recipes` lists, or FILE.py:FUNCTION for one of your own.
        data: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl; give it again to mix several.
        out: the run's folder.
        box_format: how folders write boxes: xyxy (corners, the default), xywh or cxcywh (centre, width, height), with
            -relative after it for shares of the image. Of one folder alone: --data DIR:box_format=xywh.
        init: weights to start from: a run, a transformers, open_clip or timm folder or hub id, or a big_vision .npz;
            networks and text pipeline come with it, and what it lacks (a decoder, heads) starts fresh.
        freeze: towers that are not trained: vision (LiT's), text or both.
        tower_lr: learning rate of the towers that `init` brought, as a share of `lr`.
        lora: train the towers that are not frozen by low-rank matrices of this rank, merged at the end.
        languages: all, or codes such as en or de,fr; by default all that a source has.
        tokenizer: folder, tokenizer.json or hub id; by default one is trained on the data.
        vocabulary: most entries of the tokenizer that is trained.
        steps: optimizer steps.
        epochs: passes over the data, instead of steps (1 if neither is given).
        batch_size: images of the global batch, over all ranks and parts.
        accumulate: parts that a rank's share of the batch is encoded in; the gradient is that of the whole.
        lr: peak learning rate.
        warmup: steps of linear warm-up; by default 5 % of all.
        weight_decay: decoupled, on matrices only; big_vision's 1e-4 at lr 1e-3 is 0.1 here.
        clip_norm: largest norm of the gradient.
        seed: of weights and of every random choice in the data.
        precision: auto, fp32 or bf16.
        compile: the step by torch.compile: minutes at the start, worth it on GPUs; CPUs gain a few per cent.
        checkpointing: keep no activations inside layers: a third more arithmetic, a fraction of the memory.
        workers: data processes of each rank; by default one less than its share of the cores, 8 at most.
        continue_from: a run, or one of its checkpoints, to go on from with its weights, optimizer and schedule, at
            90 % of training for NaFlex, else at 95 %. On the command line, what is not given is as it was there.
        resume: go on from the newest checkpoint in `out`.
        changed: allow a resumed run to differ in its arguments (the differences are printed).
        keep: shares of training, such as 0.9, after which a checkpoint is saved that stays, to continue from.
        save_every: steps between checkpoints.
        log_every: steps between rows of metrics.jsonl, from step 200 on; every step before.
        held_out: examples of the held-out split to judge the result on; 0 skips it.
        eval_every: steps between judgements on those examples while training, logged as eval/...; 0 for none.
        trackers: tensorboard, wandb, trackio, ...: whatever Accelerate knows and is installed.
        **keywords: the recipe's own, such as size and resolution.
    """
    data = [data] if isinstance(data, str) else data
    arguments = {k: v for k, v in locals().items() if k not in ("recipe", "out", "keywords")}
    check_numbers(arguments | keywords)
    if not data:
        raise UserError("--data is missing; give `scenes` or a folder with metadata.jsonl.")
    if eval_every and not held_out:
        raise UserError("--eval-every needs examples to judge on; give --held-out too.")
    if steps is not None and epochs is not None:
        raise UserError("--steps and --epochs both say how long to train; give one.")
    if init is not None and continue_from is not None:
        raise UserError("--init and --continue-from both say where to start from; give one.")
    function = find(recipe)
    set_seed(seed)  # heads draw their weights when the recipe is built
    checkpoint = None
    if init is not None:
        checkpoint = Pretrained.open(init)
        keywords = follow(checkpoint, function, keywords)
    elif freeze or lora or tower_lr != 1:
        raise UserError("--freeze, --tower-lr and --lora are for weights that --init brings; give it too.")
    built = build(function, keywords)
    if checkpoint is not None:
        built = replace(built, architecture=adopt(built.architecture, checkpoint))
    bias = built.bias(batch_size)
    folder = Path(out)
    config = resolved(recipe, function, keywords, arguments)
    accelerator, why = _accelerator(precision, trackers, folder)
    if batch_size % (accelerator.num_processes * accumulate * built.frame.batch_multiple):
        ranks, halves = accelerator.num_processes, " x 2 halves" if built.frame.batch_multiple > 1 else ""
        raise UserError(
            f"--batch-size {batch_size} is not divisible by {ranks} ranks x --accumulate {accumulate}{halves}."
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    wanted = None if languages is None else languages.split(",")
    side = built.frame.pixels
    specs = with_box_format(data, box_format)
    sources = [open_source(spec, split="train", languages=wanted, pixels=side) for spec in specs]
    total = sum(len(source) for source in sources)
    last = steps if steps is not None else max(1, math.ceil((epochs or 1.0) * total / batch_size))
    start, begin, stretch = None, 0, 1.0
    if continue_from is not None:
        start = origin(continue_from, built.share)
        begin, stretch = round(start.progress * last), built.stretch
        if begin == last:
            raise UserError(f"--continue-from {continue_from} is at the end of training; name an earlier checkpoint.")
    judgement = None
    if accelerator.is_main_process:
        check(folder, config, resume=resume, changed=changed)
        if held_out:
            judgement = Judgement(_held_out(specs[0], held_out, wanted, side), held_out, sources[0])
        if not resume:
            if start is not None:
                for difference in differences(stored(start.run), config):
                    print(f"changed: {difference}", flush=True)
                made = read_pipeline(RunFolder(start.run))
            else:
                made = _tokenizer(sources, tokenizer, vocabulary, built, checkpoint)
            claim(folder)
            networks = replace(built.architecture, pad_id=made.policy.pad_id)
            begin_model(RunFolder(folder), networks, made, built.boxes, built.tasks)
    accelerator.wait_for_everyone()

    set_seed(seed)
    pipeline = read_pipeline(RunFolder(folder))
    networks = replace(built.architecture, pad_id=pipeline.policy.pad_id)
    model = Model.new(networks, len(pipeline))
    fitted = None if checkpoint is None else fit(model, checkpoint)
    accelerator.init_trackers("opensiglip", config={"command": command(config, folder)})
    if model.text is not None and (fitted is None or "logit_bias" not in fitted.brought or built.logit_bias != "-10"):
        torch.nn.init.constant_(model.logit_bias, bias)
    hold(model, freeze, lora)
    if checkpointing:
        model.checkpoint_activations()
    learner = Learner(model, built.objectives, built.momentum, built.momentum_end).to(accelerator.device)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    cores = torch.get_num_threads() // ranks if accelerator.device.type == "cpu" else (os.cpu_count() or 2) // ranks
    loop = Loop(
        accelerator=accelerator,
        learner=learner,
        optimizer=adamw(learner, lr, weight_decay, slower(fitted), tower_lr),
        plan=DataPlan(
            sources=sources,
            frame=built.frame,
            fields=built.fields,
            pipeline=pipeline,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            ranks=ranks,
            parts=accumulate,
            steps=last,
            begin=begin,
            stretch=stretch,
        ),
        folder=folder,
        steps=last,
        lr=lr,
        warmup=warmup if warmup is not None else last // 20,
        clip_norm=clip_norm,
        workers=workers if workers is not None else min(8, max(1, cores - 1)),
        save_every=save_every,
        log_every=log_every,
        eval_every=eval_every,
        keep=frozenset(begin + math.floor((share * last - begin) * stretch + 1e-9) for share in keep),
        step=begin,
        compile=compile,
    )
    if judgement is not None:
        loop.evaluate = partial(judgement.row, of_run(folder, loop, built), model)
    if resume:
        loop.restore()
    elif start is not None:
        resized = take_over(start, learner, loop.optimizer)
        accelerator.print(f"continues   {start.checkpoint}; resized: {', '.join(resized) or 'nothing'}", flush=True)
    if accelerator.is_main_process:
        record(folder, config)
    accelerator.print(opening(loop, built, why), flush=True)
    if checkpoint is not None and fitted is not None:
        accelerator.print(f"start       {told(checkpoint, fitted, freeze, tower_lr, lora)}", flush=True)
    result = loop.run()
    low_rank.merge(model)
    summary: dict[str, Any] = {}
    if accelerator.is_main_process:
        summary = finish(folder, config, loop, built, result, judgement)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return summary


def _accelerator(precision: str, trackers: Sequence[str], folder: Path) -> tuple[Accelerator, str]:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    mixed, why = choose(precision, device)
    multiply(mixed, device)
    available = [*map(str, get_available_trackers()), "all"]
    for name in trackers:
        if name not in available:
            raise UserError(f"--trackers {name} is unknown or not installed; there are {', '.join(available)}.")
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=device.type == "cpu",
        log_with=list(trackers) or None,
        project_dir=folder,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    return accelerator, why


def _held_out(spec: str, count: int, languages: Sequence[str] | None, side: int) -> Source:
    try:
        return open_source(spec, split="val", languages=languages, pixels=side)
    except UserError as error:
        reason = str(error).partition(";")[0]
        raise UserError(f"--held-out {count}: {reason}; give --held-out 0 to train without a judgement.") from error


def _tokenizer(
    sources: Sequence[Source], name: str | None, vocabulary: int, recipe: Recipe, checkpoint: Pretrained | None
) -> TextPipeline:
    length, words = recipe.architecture.length, task_words(recipe.tasks, recipe.boxes)
    if checkpoint is not None:
        found = tokenizer_of(checkpoint, recipe, name)
        if found is not None:
            return found
        if checkpoint.model.vocabulary and name is None:
            return train_within(checkpoint, sources, vocabulary, length, words)
    if name is not None:
        return TextPipeline.load(name, length).with_tokens(recipe.boxes.tokens())
    texts = (text for source in sources for text in source.texts())
    return TextPipeline.train(texts, size=vocabulary, length=length, words=words).with_tokens(recipe.boxes.tokens())
