"""Open-vocabulary detectors of a few thousand random weights, saved as the hub has them: their boxes mean nothing.

`python tests/tiny_detectors.py owlv2 FOLDER` writes one, to see what `opensiglip annotate` does with it.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    PreTrainedTokenizerFast,
    SwinConfig,
)

WORDS = [
    "a",
    "an",
    "the",
    "of",
    "on",
    "in",
    "photo",
    "red",
    "green",
    "blue",
    "white",
    "black",
    "square",
    "fox",
    "close",
]
WORDS += ["up", "large", "small", "many", "drawing"]


def save(kind: str, folder: Path) -> None:
    """An "owlv2", an "owlvit" or a "grounding-dino"."""
    torch.manual_seed(0)
    model, tokenizer, images = dino() if kind == "grounding-dino" else owl(kind)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)


def owl(kind: str) -> tuple[torch.nn.Module, PreTrainedTokenizerFast, object]:
    tokenizer = owl_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = shape | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "pad_token_id": 0}
    text |= {"bos_token_id": 2, "eos_token_id": len(tokenizer) - 1}
    vision = shape | {"image_size": 32, "patch_size": 8}
    config, model, images = {
        "owlv2": (Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor),
        "owlvit": (OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor),
    }[kind]
    made = model(config(text_config=text, vision_config=vision, projection_dim=16))
    for weights in made.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return made, tokenizer, images(size={"height": 32, "width": 32})


def owl_tokenizer() -> PreTrainedTokenizerFast:
    """Words as tokens between a start and an end, whose id is the highest, as CLIP's is."""
    entries = ["<pad>", "<unk>", "<start>", *WORDS, "<end>"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(entries)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", len(entries) - 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def dino() -> tuple[torch.nn.Module, BertTokenizerFast, object]:
    """Ids of [CLS], [SEP] and the full stop are BERT's, which the library fixes."""
    entries = [f"[unused{place}]" for place in range(1040)]
    entries[0], entries[100], entries[101], entries[102], entries[1012] = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "."
    entries[1013 : 1013 + len(WORDS)] = WORDS
    tokenizer = BertTokenizerFast(vocab={word: place for place, word in enumerate(entries)})
    swin = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=4,
        out_indices=[2, 3],
    )  # fmt: skip
    text = {"model_type": "bert", "vocab_size": len(entries), "hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 32}
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=text, num_queries=5, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, d_model=32, encoder_attention_heads=2, decoder_attention_heads=2, num_feature_levels=2,
        max_text_len=12,
    )  # fmt: skip
    images = GroundingDinoImageProcessor(size={"height": 32, "width": 32})
    return GroundingDinoForObjectDetection(config), tokenizer, images


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
