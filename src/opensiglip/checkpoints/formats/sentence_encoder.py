"""The text half of an aligned pair as a sentence-transformers folder: tower, pooling and head, which that library runs.

transformers has one class for a pair of any two towers, VisionTextDualEncoderModel. It projects each tower's own pooler
by a matrix without a bias, so neither the mean of tokens nor a head of ours can be written for it.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from opensiglip.data.text import TextPipeline
from opensiglip.json_file import load_json, write_json
from opensiglip.models.pretrained_towers import PretrainedText

POOLING = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
IDENTITY, GELU = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.GELU"


def write_sentence_encoder(folder: Path, text: PretrainedText, pipeline: TextPipeline) -> None:
    """Write into `folder`, where the tower already lies, what makes embeddings of length 1 of its states."""
    pipeline.plain().save_pretrained(folder)
    settings = load_json(folder / "tokenizer_config.json")
    settings.pop("processor_class", None)  # of the pair, which has its images' processor elsewhere
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": pipeline.policy.length, "do_lower_case": False})
    pooling = {"word_embedding_dimension": text.width} | {name: kind == text.pooling for kind, name in POOLING.items()}
    parts: list[tuple[str, dict[str, Any], nn.Module | None]] = [("Pooling", pooling, None)]
    layers = [layer for layer in text.head.modules() if isinstance(layer, nn.LayerNorm | nn.Linear)]
    for layer in layers:
        if isinstance(layer, nn.LayerNorm):
            parts.append(("LayerNorm", {"dimension": text.width}, layer))
        else:
            width = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": True}
            parts.append(("Dense", width | {"activation_function": IDENTITY if layer is layers[-1] else GELU}, layer))
    parts.append(("Normalize", {}, None))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, (kind, config, part) in enumerate(parts, start=1):
        place = folder / f"{number}_{kind}"
        place.mkdir(exist_ok=True)
        write_json(place / "config.json", config)
        if part is not None:
            name = "norm" if kind == "LayerNorm" else "linear"
            weights = {f"{name}.{key}": value.detach().cpu().contiguous() for key, value in part.state_dict().items()}
            save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
        modules.append(
            {"idx": number, "name": str(number), "path": place.name, "type": f"sentence_transformers.models.{kind}"}
        )
    write_json(folder / "modules.json", modules)
