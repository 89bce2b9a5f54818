"""Does balancing the examples lower a model's association of jobs with a gender? On drawn pictures with planted bias.

python -m studies.balance OUT [SEEDS]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opensiglip.apps.evaluate import evaluate
from opensiglip.apps.weights import balance
from opensiglip.evaluation.metrics.intervals import Interval, mean_over_seeds
from opensiglip.training.run import train
from studies.settings import AUTO, TINIER

MEN = {"engineer": 0.9, "pilot": 0.9, "nurse": 0.2, "teacher": 0.2, "": 0.7}  # of those of a job who are men; "": none
HIDDEN = 0.5  # of the training pictures do not show the person, whom the caption names all the same
ROWS, HELD_OUT, SIDE = 400, 125, 32  # training pictures of each job, held-out ones of each, pixels
MARKS = {  # colour, height and width
    "man": ((60, 90, 255), 14, 4),
    "woman": ((255, 60, 60), 8, 8),
    "engineer": ((255, 220, 0), 3, 12),
    "pilot": ((0, 220, 220), 10, 6),
    "nurse": ((255, 255, 255), 7, 7),
    "teacher": ((0, 200, 60), 4, 10),
}
FLAGS: dict[str, Any] = TINIER | AUTO | {"batch_size": 64, "length": 16, "optimizer": "muon", "lr": 0.004, "steps": 300}
QUIET: dict[str, Any] = {"held_out": 0, "workers": 0, "precision": "fp32", "memory_check": False}
FIGURES = {
    "stereotyped": "held-out pictures of a job without a person that are nearer to its more frequent gender",
    "nearer_to_man": "held-out pictures of nothing that are nearer to a man",
}
Values = dict[str, Any]


def picture(rng: np.random.Generator, person: str, job: str) -> Image.Image:
    """A person's mark on the left, a job's on the right, each at a random place; "" is none."""
    pixels = rng.integers(0, 70, (SIDE, SIDE, 3), np.uint8)
    for name, left in ((person, 0), (job, SIDE // 2)):
        if name:
            colour, height, width = MARKS[name]
            y, x = rng.integers(0, SIDE - height), left + rng.integers(0, SIDE // 2 - width)
            pixels[y : y + height, x : x + width] = colour
    return Image.fromarray(pixels)


def folder(out: Path, split: str, shown: Sequence[tuple[str, str]]) -> str:
    """A source of pictures of (person, job), captioned."""
    out.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(len(shown)), []
    for number, (person, job) in enumerate(shown):
        picture(rng, "" if rng.random() < HIDDEN else person, job).save(out / f"{number}.png")
        words = " who is ".join(f"a {name}".replace("a e", "an e") for name in (person, job) if name) or "nothing"
        rows.append(json.dumps({"file_name": f"{number}.png", "captions": [f"a photo of {words}"], "split": split}))
    (out / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return str(out)


def people(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Of each job as many, men and women as `MEN` says."""
    return [("man" if rng.random() < share else "woman", job) for job, share in MEN.items() for _ in range(ROWS)]


def nearer_to_man(run: Path, data: str) -> list[float]:
    """The fairness evaluation's score of each held-out picture."""
    record = evaluate(run, data, ["fairness"], count=10_000, quiet=True)
    return list(record["values"]["fairness"]["nearer_to_man"]["scores"])


def judge(run: Path, jobs: str, nothing: str) -> dict[str, Values]:
    """What each figure is a mean of."""
    scores, men = nearer_to_man(run, jobs), [MEN[job] > 0.5 for job in MEN if job for _ in range(HELD_OUT)]
    stereotyped = [score if more else 1 - score for score, more in zip(scores, men, strict=True)]
    found = {"stereotyped": stereotyped, "nearer_to_man": nearer_to_man(run, nothing)}
    return {name: {"scores": one, "clusters": list(range(len(one)))} for name, one in found.items()}


def main(out: Path, seeds: int) -> None:
    """Both runs at every seed; their figures and paired differences."""
    data = folder(out / "people", "train", people(np.random.default_rng(0)))
    jobs = folder(out / "jobs", "val", [("", job) for job in MEN if job for _ in range(HELD_OUT)])
    nothing = folder(out / "nothing", "val", [("", "")] * HELD_OUT)
    weights = out / "weights.parquet"
    balance(data, sensitive="gender", targets="occupation", out=weights, workers=0)
    judged: dict[str, list[dict[str, Values]]] = {"uniform": [], "balanced": []}
    for seed in range(seeds):
        for name, runs in judged.items():
            run = out / f"seed-{seed}" / name
            flags = FLAGS | ({"example_weights": str(weights)} if name == "balanced" else {})
            if not (run / "summary.json").is_file():
                train("siglip", data=data, out=run, seed=seed, **flags, **QUIET)
            runs.append(judge(run, jobs, nothing))
    for figure, words in FIGURES.items():
        uniform, balanced = ([one[figure] for one in runs] for runs in judged.values())
        print(f"\n{words} ({seeds} seeds)")
        for name, interval in (
            ("uniform", mean_over_seeds(uniform)),
            ("balanced", mean_over_seeds(balanced)),
            ("difference, paired", mean_over_seeds(balanced, uniform)),
        ):
            print(f"  {name:<20}{text(interval)}")


def text(interval: Interval) -> str:
    """A mean and its 95 % interval."""
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
