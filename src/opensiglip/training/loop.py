"""The training loop: next batch, gradient, guard, step, log, save. A new paper does not change it."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from opensiglip.checkpoints.run_folder import RunFolder, tally_of
from opensiglip.checkpoints.seen_images import SeenImages
from opensiglip.data.loader import BrokenLimit, DataPlan, StepBatch, loader, to_device
from opensiglip.distributed import from_first, sum_counters
from opensiglip.errors import Stopped
from opensiglip.models.model import Model
from opensiglip.objectives.base import Signal
from opensiglip.optim import RULES, keep_rules, rate
from opensiglip.training import checkpoint
from opensiglip.training.best import Best
from opensiglip.training.curation.curator import Curator
from opensiglip.training.curation.reference import Reference
from opensiglip.training.gradient import clipped_gradient, seed_dropout
from opensiglip.training.health import Alarms, check_finite, logged, signals
from opensiglip.training.learner import Learner
from opensiglip.training.log import Log, Row, finite
from opensiglip.training.memory import return_freed_memory
from opensiglip.training.optimizers.make import averaged, decays, end_training, go_on_training
from opensiglip.training.precision import TrainStep, autocast, overflows
from opensiglip.training.sharding import gather, hollow
from opensiglip.training.stop import Stop, Wishes

SAVE_SECONDS = 600  # a checkpoint is due after this time, whatever --save-every says


@dataclass
class Loop:
    """The training of one run, from its current step to the last."""

    accelerator: Accelerator
    learner: Learner
    optimizer: torch.optim.Optimizer
    plan: DataPlan
    folder: Path
    steps: int  # of the schedule
    lr: float
    warmup: int
    clip_norm: float
    workers: int
    save_every: int
    log_every: int
    eval_every: int = 0
    evaluate: Callable[[Model], dict[str, float]] | None = None  # on the main process, where anything is held out
    describe: Callable[[Path], None] = lambda folder: None  # writes tokenizer and opensiglip.json to a checkpoint
    keep: frozenset[int] = frozenset()  # steps after which a checkpoint is saved and kept
    keep_last: int = 2  # number of newest checkpoints to keep
    best: Best | None = None  # the metric whose best checkpoint is kept
    stop: Stop = field(default_factory=Stop)
    saved_at: float = field(default_factory=time.monotonic)
    compile: bool = False
    step: int = 0  # steps taken
    images_seen: int = 0  # by all ranks
    skipped_steps: int = 0
    skeleton: Model | None = None  # the modules of a sharded learner's model, without weights
    rules: int = RULES  # of the optimizer
    curator: Curator | None = None  # selects the examples of each step, with --curate
    references: Sequence[Reference] = ()  # score examples or supply distillation targets
    failures: int = 0  # non-finite steps in a row
    precision: str = "no"
    scaler: torch.amp.GradScaler = field(default_factory=partial(torch.amp.GradScaler, "cpu", enabled=False))
    broken: BrokenLimit = field(default_factory=BrokenLimit)
    seen: SeenImages = field(default_factory=SeenImages)
    alarms: Alarms = field(default_factory=Alarms)

    @property
    def last(self) -> int:
        """Steps of the whole run: the schedule's, with those from `plan.begin` on stretched."""
        return self.plan.begin + round((self.steps - self.plan.begin) * self.plan.stretch)

    @property
    def autocast(self) -> Callable[[], AbstractContextManager[Any]]:
        """The autocast context of towers and decoder."""
        return autocast(self.precision, self.accelerator.device)

    def progress(self, step: int) -> float:
        """The fraction of training that lies before a step."""
        return self.plan.progress(step)

    def restore(self, saved: Path) -> None:
        """Continue from a checkpoint."""
        state, new = checkpoint.load(saved, self.learner, self.optimizer, self.plan.begin)
        if new:
            self.accelerator.print(f"fresh       {', '.join(sorted(new))}: {saved} has nothing of them", flush=True)
        go_on_training(self.optimizer)
        self.step, self.skipped_steps = state["step"], state["skipped_steps"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(self.scaler.state_dict() | state.get("loss_scale", {}))
        self.rules = int(state.get("rules", 1))
        keep_rules(self.optimizer, self.rules)
        if self.best is not None:
            self.best.restore(state.get("best"))
        if self.curator is not None and "curated" in state:
            self.curator.restore(state["curated"])
            self.curator.tally.restore(tally_of(saved))
        self.images_seen = int(state.get("images_seen", self.plan.step_slice(self.step).first))
        if self.accelerator.is_main_process:  # the counts are of all ranks; one rank continues them
            self.broken.read, self.broken.skipped = state["read"], Counter(state["skipped_examples"])

    def run(self) -> dict[str, Any]:
        """Train to the last step. Returns the rate and the skipped examples and steps."""
        device, started = self.accelerator.device, time.perf_counter()
        metrics, resumed = RunFolder(self.folder).metrics, self.step > self.plan.begin
        log = Log(self.accelerator, metrics, self.step, self.last, self.log_every, resumed)
        if self.compile:
            self.learner.compile()
        # A checkpoint is from the end of a step: terms that this step had started must not start again.
        begun = self.activate(self.step - 1) if self.step else set()
        wrapped: nn.Module | None = None
        last = self.step if self.best is not None and self.best.exhausted else self.last
        for batch in loader(self.plan, self.step, last, self.workers, pin=device.type == "cuda"):
            new = self.activate(self.step) - begun
            if new or wrapped is None:  # what a rank averages, and what compile sees, is fixed when it is wrapped
                if new and self.step:
                    with averaged(self.optimizer):
                        if (model := self.model()) is not None:
                            checkpoint.save_stage(RunFolder(self.folder), self.step, model)
                self.learner.start_teachers(new)
                begun |= new
                wrapped = None  # first: ranks that wait for the old wrapper's gradients would wait for ever
                wrapped = self.wrap()
            row, found, wishes = self.train_step(wrapped, batch)
            log.step(self.step, row, self.plan.step_slice(self.step).size)
            check_finite(self.step, self.failures, row)
            healthy = self.alarms.check(self.step, found, self.progress(self.step))
            self.step += 1
            self._evaluate_and_save(log, healthy, wishes)
            if wishes.stop:
                log.close()
                raise Stopped
            if self.best is not None and self.best.exhausted:
                break
        log.close()
        end_training(self.optimizer)
        judged: dict[str, Any] = {} if self.best is None else {"best": self.best.state()}
        judged |= {} if self.curator is None else {"curated": self.curator.shares()}
        return judged | {
            "steps": self.step,
            "images_seen": self.images_seen,
            "training_seconds": round(time.perf_counter() - started, 1),
            "images_per_second": round(log.rate(), 1),
            "skipped_steps": self.skipped_steps,
            "skipped_examples": dict(sum_counters(self.broken.read, self.broken.skipped)[1].most_common()),
        }

    def save(self) -> None:
        """Write a checkpoint from the main process; called on all ranks."""
        read, skipped = sum_counters(self.broken.read, self.broken.skipped)
        main = self.accelerator.is_main_process
        self.seen.save(RunFolder(self.folder).seen, self.accelerator.device, write=main)
        tensors = checkpoint.tensors(self.learner, self.optimizer, keep=main)
        if main:
            state = {
                "progress": self.progress(self.step),
                "images_seen": self.images_seen,
                "skipped_steps": self.skipped_steps,
                "rules": self.rules,
                "read": read,
                "skipped_examples": dict(skipped),
            }
            if self.scaler.is_enabled():
                state["loss_scale"] = self.scaler.state_dict()
            if self.best is not None:
                state["best"] = self.best.state()
            if self.curator is not None:
                state["curated"] = self.curator.state()
            run = RunFolder(self.folder)
            checkpoint.save(run, self.step, *tensors, state, self._describe)
            best = set() if self.best is None or self.best.step is None else {self.best.step}
            checkpoint.prune(run, self.keep_last, self.keep | best)
        self.saved_at = time.monotonic()
        self.accelerator.wait_for_everyone()

    def _describe(self, part: Path) -> None:
        """Write to a checkpoint what is neither the learner's nor the optimizer's."""
        self.describe(part)
        if self.curator is not None:
            self.curator.tally.save(tally_of(part))

    def model(self) -> Model | None:
        """The whole model on the main process; None on others. Must be called on all ranks."""
        main = self.accelerator.is_main_process
        if self.skeleton is None:
            return self.learner.model if main else None
        weights = gather(self.learner.model.state_dict(), keep=main)
        if not main:
            return None
        model: Model = hollow(self.skeleton, self.accelerator.device)
        model.to(self.accelerator.device).load_state_dict(weights)
        return model

    def activate(self, step: int) -> set[str]:
        """The names of the objectives that are active in a step.

        Under DDP the others are frozen, because ranks would wait for their gradients. FSDP2 fixes the trained
        parameters when it first gathers a weight, and does not wait.
        """
        return self.learner.activate(self.progress(step), freeze=self.skeleton is None)

    def wrap(self) -> nn.Module:
        """Wrap the learner for this device, precision and ranks; called again when other weights are to be trained."""
        self.accelerator.free_memory()
        sharded = self.skeleton is not None  # its gradients come averaged
        ready: nn.Module = self.accelerator.prepare_model(
            TrainStep(self.learner, self.autocast), evaluation_mode=sharded
        )
        return ready.train()

    def train_step(self, wrapped: nn.Module, batch: StepBatch) -> tuple[Row, list[Signal], Wishes]:
        """One optimizer step, skipped if a value is not finite. Returns the log row, its signals and the requests."""
        images = self.plan.step_slice(self.step).size
        self.images_seen += images
        self.broken.count(images // self.plan.ranks, batch.skipped)
        if batch.hashes is not None:
            self.seen.add(batch.hashes)
        parts, curated, device = batch.parts, Row(), self.accelerator.device
        early, late = ([one for one in self.references if one.early == early] for early in (True, False))
        for one in early:
            parts = [one.embed(part, device) for part in parts]
        if self.curator is not None:
            parts, curated = self.curator.choose(self.learner, parts, self.step, device)
        for one in late:  # only what is chosen
            parts = [one.embed(part, device) for part in parts]
        parts = [to_device(part, device) for part in parts]
        lr = self.lr * rate(
            self.plan.schedule_step(self.step), self.steps, self.warmup, self.rules, decays(self.optimizer)
        )
        seed_dropout(self.plan.seed, self.step, self.accelerator.process_index)
        # With sharding each part's gradient is averaged at once; otherwise every rank would store it whole.
        no_sync = self.accelerator.no_sync if self.skeleton is None else lambda step: nullcontext()
        losses, notes, norm = clipped_gradient(
            wrapped, self.learner, parts, self.optimizer, self.scaler, self.clip_norm, device, no_sync, self._wishes
        )
        wishes = Wishes(*(notes.pop("wishes") > 0).tolist())
        if wishes.stop:
            self.stop.agreed()
        overflow = overflows(self.scaler, losses, norm)
        if all(math.isfinite(value) for value in (*losses.values(), norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group["factor"]
            self.optimizer.step()
            self.learner.after_step(notes, self.progress(self.step))
            self.failures = 0
        else:
            self.failures, self.skipped_steps = self.failures + (not overflow), self.skipped_steps + 1
        scale = {"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}
        self.scaler.update()  # halves the scale after an overflow, doubles it after 2000 steps without
        self.optimizer.zero_grad(set_to_none=True)
        row: Row = {"loss" if name == "loss" else f"loss/{name}": finite(loss) for name, loss in losses.items()}
        found = signals(self.learner, notes)
        row |= curated | logged(found) | {"lr": lr, "grad_norm": finite(norm)} | scale
        return row | self.plan.facts(self.step, self.images_seen), found, wishes

    def _wishes(self) -> dict[str, Tensor]:
        """The requests of this rank after the step; the clock of the first rank decides when a checkpoint is due."""
        due = self.accelerator.is_main_process and time.monotonic() - self.saved_at > SAVE_SECONDS
        return {"wishes": torch.tensor([self.stop.by is not None, due], device=self.accelerator.device)}

    def _evaluate_and_save(self, log: Log, healthy: bool, wishes: Wishes) -> None:
        """Evaluate and save if due; the time does not count in the rate. Unhealthy steps save only the last one."""
        before = time.perf_counter()
        due = self.step % self.save_every == 0 or self.step in self.keep or wishes.stop or wishes.save
        judged = self.step < self.last or self.best is not None  # otherwise the end of the run evaluates
        if self.eval_every and self.step % self.eval_every == 0 and judged:
            figures = dict[str, float]()
            with averaged(self.optimizer):
                model = self.model()
                if self.evaluate is not None and model is not None:
                    figures = self.evaluate(model)
                    self.learner.train()
                    log.write(self.step - 1, figures)
            if self.best is not None and (healthy or self.step == self.last):  # only then is there a checkpoint
                figures = from_first(figures)
                due = self.best.judge(self.step, figures) or self.best.exhausted or due
            self.accelerator.wait_for_everyone()
        if (due and healthy) or self.step == self.last:
            with averaged(self.optimizer):
                self.save()
            if self.accelerator.device.type == "cpu":
                return_freed_memory()
        log.pause(time.perf_counter() - before)
