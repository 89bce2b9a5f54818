"""A study carried out: every run at every seed, each trained, then judged; what is done already is left as it is."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from opensiglip.apps.evaluate import evaluate
from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.disk import writable
from opensiglip.errors import UserError
from opensiglip.json_file import load_json, write_json
from opensiglip.training.run import train
from studies.devices import spread
from studies.study import Budget, Run, Study

DECLARED, JUDGED = "declared.json", "judged"
SAVE_EVERY = 250  # steps: what a kill costs at most


@dataclass(frozen=True)
class Job:
    """One run at one seed: what is trained and judged in a folder of its own."""

    run: Run
    seed: int
    folder: Path
    data: str
    budget: Budget
    tasks: tuple[str, ...]
    towers: Mapping[str, str] = field(default_factory=dict)  # of --vision and --text
    until: float | None = None  # the time.time() after which it is not begun

    @property
    def done(self) -> bool:
        return (self.folder / JUDGED).is_dir()


def carry_out(
    study: Study,
    out: Path,
    *,
    data: str | None,
    seeds: int,
    budget: str,
    places: Sequence[str] = (),
    towers: Mapping[str, str] | None = None,
    hours: float | None = None,
) -> list[Job]:
    """All jobs of a study, done, spread over `places` (devices.py); with `hours`, those of the seeds that were reached.

    Raises UserError where `out` holds another study, on what a run can't take, and where `hours` end before seed 0.
    """
    towers = towers or {}
    if study.on_towers and (len(towers) < 2 or data is None):
        raise UserError(
            f"study {study.name} needs --data, --vision and --text: your photographs and pretrained towers."
        )
    if towers and not study.on_towers:
        raise UserError(f"study {study.name} trains its own towers; leave --vision and --text out.")
    if hours is not None and hours <= 0:
        raise UserError("--hours is more than 0.")
    if budget not in study.budgets:
        raise UserError(f"--budget {budget!r}: study {study.name} has {', '.join(study.budgets)}.")
    if seeds < 1:
        raise UserError("--seeds is at least 1.")
    data = data or study.data
    for run in study.runs:
        run.trains_on(data)
    writable(out)
    claim(out, {"study": study.name, "data": data, "budget": budget} | dict(towers))
    until = None if hours is None else time.time() + 3600 * hours
    chosen, tasks = study.budgets[budget], tuple(study.tasks)
    jobs = [
        Job(run, seed, out / f"seed-{seed}" / run.name, data, chosen, tasks, towers, until)
        for seed in range(seeds)
        for run in study.runs
    ]
    left = [job for job in jobs if not job.done]
    print(f"study       {study.name}: {len(jobs)} runs, {len(jobs) - len(left)} of them done before", flush=True)
    waves = [[job for job in left if job.run.waits == later] for later in (False, True)]
    done = chain.from_iterable(spread(carry_out_one, wave, places) for wave in waves)
    for number, job in enumerate((job for job in done if job.done), len(jobs) - len(left) + 1):
        print(f"done        {number} of {len(jobs)}: {job.run.name}, seed {job.seed}", flush=True)
    short = {job.seed for job in jobs if not job.done}
    if 0 in short:
        raise UserError(f"--hours {hours} ended before all runs of seed 0 were done; the same command continues it.")
    return [job for job in jobs if job.seed not in short]


def claim(out: Path, declared: dict[str, str]) -> None:
    """Make the folder of a study, or go on in it. Raises UserError where it is another's."""
    path = out / DECLARED
    out.mkdir(parents=True, exist_ok=True)
    try:
        before = load_json(path) if path.is_file() else declared
    except (OSError, ValueError):
        raise UserError(f"{path} is damaged, or does not belong to a study; give another --out.") from None
    if before != declared:
        raise UserError(f"--out {out} holds another study ({before}, now {declared}); name another folder.")
    write_json(path, declared)


def carry_out_one(job: Job) -> Job:
    """Train, or go on training, and judge; not after the job's time."""
    folder = job.folder
    if job.until is not None and time.time() > job.until:
        return job
    run = RunFolder(folder)
    if not run.summary.is_file():
        resume = run.newest() is not None and run.config.is_file()
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)  # stopped before its first checkpoint
        flags = {"save_every": SAVE_EVERY, "held_out": 0} | dict(job.budget.train) | dict(job.run.flags)
        if job.towers:
            flags |= {**job.towers, "features": folder.parent.parent / "features"}  # which all runs and seeds share
        flags["steps"] = round(flags["steps"] * job.run.share)
        if job.run.after is not None:
            flags["continue_from"] = str(kept(folder.parent / job.run.after))
        if job.run.reference is not None:
            flags["reference"] = str(folder.parent / job.run.reference)
        data = [job.run.trains_on(job.data)]
        train(job.run.recipe, data=data, out=folder, seed=job.seed, resume=resume, **flags)
    part = folder / f"{JUDGED}.part"
    shutil.rmtree(part, ignore_errors=True)
    evaluate(str(folder), job.data, job.tasks, part, seed=job.seed, trust=True, **job.budget.judge)
    part.rename(folder / JUDGED)
    return job


def kept(folder: Path) -> Path:
    """The earliest checkpoint that a finished run has kept: what the runs `after` it go on from."""
    return RunFolder(folder).complete()[0]
