"""SugarCrepe: 7,511 captions, each beside one hard negative of seven kinds, on images of COCO's val2017."""

from pathlib import Path

from opensiglip.data.sources.sugarcrepe import read_items
from opensiglip.errors import UserError
from opensiglip.evaluation.benchmarks.compositionality import compositionality
from opensiglip.evaluation.protocols.protocol import How, Judged, find_file, judge_source, listed
from opensiglip.inference.predictor import Predictor

KINDS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
DOWNLOAD = (
    "the seven files are in `data` of https://github.com/RAIVNLab/sugar-crepe, the images are COCO's val2017 of "
    "https://cocodataset.org"
)


def sugarcrepe(model: Predictor, folder: Path, how: How) -> dict[str, Judged]:
    """The share of pairs whose caption scores higher than its negative, of each kind and of all."""
    records = []
    for kind in KINDS:
        file = find_file(folder, [f"{kind}.json", f"data/{kind}.json"], DOWNLOAD)
        for item in read_items(file):
            if not isinstance(item, dict) or not isinstance(item.get("filename"), str):
                raise UserError(f"{file} has a row without a filename; {DOWNLOAD}.")
            texts = {"captions": item.get("caption"), "negative_caption": item.get("negative_caption")}
            records.append({"file_name": item["filename"], "label": kind} | texts)
    places = [folder / name for name in ("val2017", "images/val2017", "data/coco/images/val2017", "images", "")]
    source = listed(str(folder), records, places, DOWNLOAD)
    return {"compositionality": judge_source(model, source, compositionality, how)}
