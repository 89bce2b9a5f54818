"""What to type when a run has ended: its model on a picture that lies in its folder, its demo, one's own images."""

import os
import shlex
from collections.abc import Sequence

from torchvision.io import write_png

from opensiglip.checkpoints.run_folder import RunFolder
from opensiglip.data.example import Example, Source
from opensiglip.disk import whole_file
from opensiglip.evaluation.encode import readable_examples
from opensiglip.models.model import Model

LABELS = 3  # captions that compete


def tries(run: RunFolder, recipe: str, model: Model, tasks: Sequence[str], held_out: Source | None) -> dict[str, str]:
    """Commands, each with what it does; writes the picture (the first held-out one) that the first of them reads."""
    found = {}
    examples = [] if held_out is None else list(readable_examples(held_out, LABELS))
    if examples and (flags := questions(examples, model, tasks)):
        with whole_file(run.example) as part:
            write_png(examples[0].image, str(part))
        words = ["opensiglip", "predict", str(run.path), str(run.example), *flags]
        found[shlex.join(words)] = "what the model says of a held-out image"
    found[shlex.join(["opensiglip", "demo", str(run.path)])] = "a web page on this machine"
    mine = ["--config", str(run.config), "--data", "FOLDER", "--out", os.path.normpath(run.path / ".." / "mine")]
    found[shlex.join(["opensiglip", "train", recipe, *mine])] = "the same on your own images"
    return found


def questions(examples: Sequence[Example], model: Model, tasks: Sequence[str]) -> list[str]:
    """Flags of `predict` that this model can answer on the first example."""
    flags = ["--caption"] if "cap" in tasks else []
    phrases = [next(iter(one.phrases.values())) for one in examples[0].regions if one.is_referable]
    if "aref" in tasks and phrases:
        flags += ["--locate", phrases[0]]
    captions = [one.captions[0].text.replace(",", "") for one in examples if one.captions]
    if not flags and model.text is not None and captions:
        flags += ["--classify", ",".join(captions)]
    return flags
