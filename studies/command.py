"""`opensiglip study`: its flags."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import tyro

from opensiglip.errors import UserError
from opensiglip.evaluation.results import FILE
from opensiglip.user_file import load
from studies import page
from studies.answer import columns, costs, table
from studies.devices import places
from studies.engine import JUDGED, carry_out
from studies.studies import STUDIES
from studies.study import Study


def find(name: str) -> Study:
    """The study of that name, or FILE.py:NAME of the user's own. Raises UserError."""
    if name in STUDIES:
        return STUDIES[name]
    file, _, own = name.rpartition(":")
    if file.endswith(".py"):
        study = load("study", file, own)
        if not isinstance(study, Study):
            raise UserError(f"{file} has no study {own!r}; name a `Study` that it makes.")
        return study
    raise UserError(f"no such study: {name!r}; studies are {', '.join(STUDIES)}, or FILE.py:NAME.")


def study(
    name: Annotated[str, tyro.conf.Positional],
    *,
    out: Path,
    data: str | None = None,
    seeds: int = 1,
    budget: str = "cpu-hour",
    vision: str | None = None,
    text: str | None = None,
    hours: float | None = None,
) -> None:
    """Compare recipes at equal data, steps, size and seeds, and write the answer as one page.

    A study may be stopped at any moment: the same command continues, and with more --seeds adds seeds.

    Args:
        name: objectives, localization, tasks, encoders, distillation, curation-30, curation-60, token-classification,
            optimizers, keep-tokens, schedules, languages, photo-languages, hard-negatives, region-pairs, photographs,
            batch, parallel, nested, tips2, or FILE.py:NAME for your own study.
        out: folder for the runs, study.html, study.json and study.png.
        data: `scenes`, `scenes:key=value,...` or a folder with metadata.jsonl; by default easy scenes.
        seeds: number of seeds, starting at 0, at which all runs are repeated.
        budget: cpu-hour or gpu-10min: all runs of one seed within an hour on two CPU cores, or ten minutes on a GPU.
        vision: for the studies `photographs` and `photo-languages`: image tower of its runs, as train's --vision.
        text: for the studies `photographs` and `photo-languages`: text tower of its runs, as train's --text.
        hours: start no run after this many hours, and report the seeds that are done.
    """
    chosen = find(name)
    towers = {flag: value for flag, value in (("vision", vision), ("text", text)) if value is not None}
    try:
        jobs = carry_out(
            chosen, out, data=data, seeds=seeds, budget=budget, places=places(), towers=towers, hours=hours
        )
    except KeyboardInterrupt:
        raise UserError("stopped; the same command continues it.") from None
    if len(jobs) < seeds * len(chosen.runs):
        print(f"hours       {hours} ended after {(seeds := len(jobs) // len(chosen.runs))} of the seeds", flush=True)
    found = columns(chosen, jobs)
    examples = json.loads((jobs[0].folder / JUDGED / FILE).read_text(encoding="utf-8"))["examples"]
    words = ["opensiglip", "study", name, "--out", str(out), "--data", jobs[0].data]
    spent = costs(jobs)
    words += [word for flag, value in towers.items() for word in (f"--{flag}", value)]
    facts = {
        "data": jobs[0].data,
        "budget": budget,
        "seeds": seeds,
        "examples": examples,
        "command": shlex.join([*words, "--seeds", str(seeds), "--budget", budget]),
        "runs": spent,
    }
    page.write(out, chosen, found, facts)
    print(f"\n{table(found, spent)}")
    print(f"\npage        {out / 'study.html'}\nfigures     {out / 'study.json'}\nplot        {out / 'study.png'}")
