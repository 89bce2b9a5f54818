"""Does balancing the examples lower a model's association of jobs with a gender? On drawn pictures with planted bias.

python -m studies.balance OUT [SEEDS [PICTURES]]    # of each job, for training
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opensiglip.apps.evaluate import evaluate
from opensiglip.apps.weights import balance
from opensiglip.data.sources.registry import open_source
from opensiglip.data.weighting.file import read_weights
from opensiglip.evaluation.benchmarks.fairness import GENDERS
from opensiglip.evaluation.metrics.intervals import Interval, mean_over_seeds
from opensiglip.inference.predictor import load
from opensiglip.training.run import train
from studies.settings import AUTO, TINIER

MEN = {"engineer": 0.9, "pilot": 0.9, "nurse": 0.2, "teacher": 0.2, "": 0.7}  # of those of a job who are men; "": none
HIDDEN = 0.5  # of the training pictures do not show the person, whom the caption names all the same
PICTURES, HELD_OUT, SIDE = 2000, 125, 32  # training pictures of each job, held-out ones of each, pixels
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
    "stereotyped_margin": "by how much that gender's logit is above the other's, on these pictures",
    "nearer_to_man": "held-out pictures of nothing that are nearer to a man",
    "man_margin": "by how much a man's logit is above a woman's, on these pictures",
}
Person = tuple[str, str]  # "man" or "woman", and a job
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


def captions(person: str, job: str) -> list[str]:
    """One of the person alone, as the evaluation asks, and one with the job; a visit draws one of them.

    Without the first, no picture of a job would be trained with a text that the evaluation compares it to.
    """
    named = [f"a {name}".replace("a e", "an e") for name in (person, job) if name] or ["nothing"]
    return [f"a photo of {words}" for words in dict.fromkeys([named[0], " who is ".join(named)])]


def folder(out: Path, split: str, shown: Sequence[Person]) -> str:
    """A source of pictures of (person, job), captioned."""
    out.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(len(shown)), []
    for number, (person, job) in enumerate(shown):
        picture(rng, "" if rng.random() < HIDDEN else person, job).save(out / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "captions": captions(person, job), "split": split}))
    (out / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return str(out)


def people(rng: np.random.Generator, pictures: int) -> list[Person]:
    """Of each job as many, men and women as `MEN` says."""
    return [("man" if rng.random() < share else "woman", job) for job, share in MEN.items() for _ in range(pictures)]


def planted(shown: Iterable[Person], weights: Iterable[float]) -> float:
    """The margin of the best possible model: the mean over jobs of the log odds of their more frequent gender.

    The sigmoid loss is least where a logit is log p(image, text) / (p(image) p(text)) and a constant (Levy and
    Goldberg, 2014). A margin is then the log odds of the gender in the job less those in all texts, which cancel in the
    mean over two jobs of mostly men and two of mostly women.
    """
    mass = defaultdict[Person, float](float)
    for person, weight in zip(shown, weights, strict=True):
        mass[person] += weight
    odds = [log(mass["man", job] / mass["woman", job]) * (1 if MEN[job] > 0.5 else -1) for job in MEN if job]
    return sum(odds) / len(odds)


def nearer_to_man(run: Path, data: str) -> list[float]:
    """The fairness evaluation's score of each held-out picture."""
    record = evaluate(run, data, ["fairness"], count=10_000, quiet=True)
    return list(record["values"]["fairness"]["nearer_to_man"]["scores"])


def margins(run: Path, data: str) -> list[float]:
    """The logit of a man less that of a woman on each held-out picture; the sigmoid's bias cancels."""
    model, source = load(run), open_source(data, split="val")
    assert model.logit_scale is not None, "siglip has a text tower"
    images = model.embed_images([source.example(row).image for row in range(len(source))])
    man, woman = model.embed_texts(GENDERS)
    return [float(margin) for margin in exp(model.logit_scale) * images @ (man - woman)]


def judge(run: Path, jobs: str, nothing: str) -> dict[str, Values]:
    """What each figure is a mean of."""
    more_men = [MEN[job] > 0.5 for job in MEN if job for _ in range(HELD_OUT)]
    scores, logits = (zip(of(run, jobs), more_men, strict=True) for of in (nearer_to_man, margins))
    found = {
        "stereotyped": [score if men else 1 - score for score, men in scores],
        "stereotyped_margin": [margin if men else -margin for margin, men in logits],
        "nearer_to_man": nearer_to_man(run, nothing),
        "man_margin": margins(run, nothing),
    }
    return {name: {"scores": one, "clusters": list(range(len(one)))} for name, one in found.items()}


def main(out: Path, seeds: int, pictures: int) -> None:
    """Both runs at every seed; their figures and paired differences."""
    shown = people(np.random.default_rng(0), pictures)
    data = folder(out / "people", "train", shown)
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
    weighed = read_weights(weights, open_source(data))
    print("\nthe margin on pictures of a job that the data have planted")
    print(f"  {'uniform':<20}{planted(shown, np.ones(len(shown))):+.3f}")
    print(f"  {'balanced':<20}{planted(shown, weighed):+.3f}")


def text(interval: Interval) -> str:
    """A mean and its 95 % interval."""
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


if __name__ == "__main__":
    given = [int(number) for number in sys.argv[2:]]
    seeds, pictures = (*given, *(3, PICTURES)[len(given) :])
    main(Path(sys.argv[1]) / f"pictures-{pictures}", seeds, pictures)
