"""RefCOCO, RefCOCO+ and RefCOCOg: is the box of a referring expression found?"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from opensiglip.data.sources.refcoco import RefCoco, refs_file
from opensiglip.data.sources.spec import Spec
from opensiglip.errors import EmptySplit, UserError
from opensiglip.evaluation.benchmark import Benchmark, BenchmarkResult, Context
from opensiglip.evaluation.benchmarks.decoder_probe import fit_probe
from opensiglip.evaluation.benchmarks.grounding import grounding
from opensiglip.evaluation.encode import EncodedExamples
from opensiglip.evaluation.protocols.protocol import How, Judged, find_file, judge_source
from opensiglip.inference.predictor import Predictor

DOWNLOAD = (
    "instances.json and refs(unc).p, for refcocog refs(umd).p, are at https://github.com/lichengunc/refer, the images "
    "are COCO's train2014 of https://cocodataset.org"
)
UNC, UMD = ("unc", ("val", "testA", "testB")), ("umd", ("val", "test"))
SETS = {"refcoco": UNC, "refcoco+": UNC, "refcocog": UMD}


def referring(name: str, model: Predictor, folder: Path, how: How) -> dict[str, Judged]:
    """Acc@0.5 over all sentences of each split.

    A model whose own decoder writes boxes is asked itself. For any other a decoder of six layers learns from the clean
    train pool what the frozen encoder's tokens say, as for the published figures (SigLIP 2, Sec. 3.4.1).
    """
    by, splits = SETS[name]
    own = folder / name if (folder / name).is_dir() else folder
    find_file(own, ["instances.json"], DOWNLOAD)
    spec = Spec(str(folder), "refcoco", str(own), {"by": by})
    if not refs_file(own, spec).is_file():
        raise UserError(f"{own} has no refs({by}).p; {DOWNLOAD}.")
    try:
        training = RefCoco(spec, split="train")
    except EmptySplit:
        training = None
    context = replace(how.context, training=training, probe=replace(how.context.probe, tasks=("aref",)))
    how = replace(how, context=context)
    ask: Benchmark = grounding
    if not model.has_decoder or model.boxes is None or "aref" not in model.tasks:
        probe, loss = fit_probe(model, context)
        ask = partial(_ask_probe, probe, loss, context)
    return {split: judge_source(model, RefCoco(spec, split=split, every_sentence=True), ask, how) for split in splits}


def _ask_probe(
    probe: Predictor, loss: float, fitted: Context, model: Predictor, examples: EncodedExamples, context: Context
) -> BenchmarkResult:
    """The probe's answers on what the model encoded."""
    result = grounding(probe, examples, context)
    images = len(fitted.training_examples(model).examples)
    return replace(result, metrics=result.metrics | {"probe_training_images": images, "probe_loss": loss})
