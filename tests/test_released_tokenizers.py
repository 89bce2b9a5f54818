"""Tokenizers of released checkpoints: every path of ours, and plain transformers, give their makers' ids."""

import json
import struct
import warnings
from pathlib import Path

import numpy as np
import peers
import pytest
import torch
from peers import LENGTH, VOCABULARY
from toys import like_gpt2
from transformers import AutoTokenizer, BertJapaneseTokenizer

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.data.sentencepiece import read_sentencepiece
from opensiglip.data.text import TextPipeline
from opensiglip.errors import UserError

TEXTS = ("a  red fox", "A Red apple", "two dogs, on grass.", "", "a word " * 70)

# A unigram model: ids are places, scores are log-probabilities. "▁red" is likelier whole than in parts.
PIECES = {
    "<pad>": 0.0,
    "</s>": 0.0,
    "<unk>": 0.0,
    "▁": -2.0,
    "▁a": -1.0,
    "▁red": -2.0,
    "▁re": -1.5,
    "d": -1.0,
    "f": -3.0,
}
PIECES |= {"o": -3.0, "x": -3.0, "fox": -4.0, "▁:": -1.5, ":": -2.0, ",": -2.0, ".": -2.0, "_": -2.0}
ID = {piece: place for place, piece in enumerate(PIECES)}


def field(number: int, value: bytes | int) -> bytes:
    """One field of a protobuf message."""

    def varint(x: int) -> bytes:
        return bytes([x]) if x < 128 else bytes([x % 128 + 128]) + varint(x // 128)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece_model(kind: int = 1) -> bytes:
    """`PIECES` as the sentencepiece library writes them."""
    types = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    model = b""
    for piece, score in PIECES.items():
        scored = field(1, piece.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score)
        model += field(1, scored + field(3, types.get(piece, 1)))
    return model + field(2, field(3, kind)) + field(3, field(1, b"identity") + field(2, b""))


@pytest.fixture
def siglip1(tmp_path: Path) -> Path:
    """A folder with SigLIP 1's tokenizer as the hub has it: spiece.model, and the class that needs sentencepiece."""
    folder = tmp_path / "siglip1"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(sentencepiece_model())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))
    return folder


def released(folder: Path, rows: int = len(PIECES), length: int = 12) -> TextPipeline:
    found = TextPipeline.released(folder, length=length, vocabulary=rows, name="it")
    assert found is not None
    return found


def test_siglip_1s_tokenizer_needs_no_sentencepiece_and_segments_by_likelihood(siglip1: Path) -> None:
    pipeline = released(siglip1)
    assert (pipeline.policy.pad_id, pipeline.policy.eos_id) == (1, 1)
    a, red, fox, end = ID["▁a"], ID["▁red"], ID["fox"], 1
    # "▁red" -2.0 beats "▁re" + "d" -2.5; "▁" + "fox" -6.0 beats its letters -11.0.
    assert pipeline.fixed("a red fox").tolist() == [a, red, ID["▁"], fox, *[end] * 8]
    assert pipeline.fixed("A RED, fox!").tolist() == pipeline.fixed(" a  red\nfox ").tolist()
    assert pipeline.fixed("a_red").tolist() == pipeline.fixed("a red").tolist(), "big_vision makes _ a blank"
    assert pipeline.fixed("a").tolist() == pipeline.fixed("a.").tolist() == [a, *[end] * 11]


def test_the_decoders_text_keeps_the_punctuation_that_captions_lose(siglip1: Path, tmp_path: Path) -> None:
    pipeline = released(siglip1)
    assert pipeline.ids(" :") == (ID["▁:"],)
    assert pipeline.ids(" a red, fox") == (ID["▁a"], ID["▁red"], ID[","], ID["▁"], ID["fox"])
    policy = pipeline.save_pretrained(tmp_path / "saved")
    plain = AutoTokenizer.from_pretrained(tmp_path / "saved")
    given = plain(list(TEXTS), padding="max_length", max_length=12, truncation=True)["input_ids"]
    assert given == [pipeline.fixed(text).tolist() for text in TEXTS], "plain transformers drops it, too"
    for back in (TextPipeline.from_pretrained(tmp_path / "saved", policy), TextPipeline.around(plain, 12)):
        assert back.ids(" :") == (ID["▁:"],)
        assert all(np.array_equal(back.fixed(text), pipeline.fixed(text)) for text in TEXTS)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no model", "not a readable SentencePiece model"),
        (b"", "has no pieces"),
        (sentencepiece_model(kind=2), "not a unigram model"),
    ],
)
def test_a_broken_sentencepiece_model_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_sentencepiece(tmp_path / "spiece.model")


def test_padding_with_siglip_1s_end_is_no_mistake() -> None:
    around = TextPipeline.around(peers.tokenizer("</s>", "</s>"), LENGTH)
    assert (around.policy.pad_id, around.policy.eos_id) == (1, 1)
    plain = peers.tokenizer("</s>", "</s>")
    given = plain(list(TEXTS), padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    assert [around.fixed(text).tolist() for text in TEXTS] == given


@pytest.mark.parametrize("make", [peers.siglip, peers.siglip2, peers.open_clip_siglip])
@torch.no_grad()
def test_every_path_of_ours_gives_the_embeddings_of_the_makers_tokenizer(make: object, tmp_path: Path) -> None:
    peer = make(tmp_path / "peer")  # type: ignore[operator]
    opened = Pretrained.open(peer.folder)
    opened.save(tmp_path / "export")
    again, tokenizer = Pretrained.open(tmp_path / "export"), AutoTokenizer.from_pretrained(peer.folder)
    bridge = TextPipeline.around(AutoTokenizer.from_pretrained(peer.folder), LENGTH)
    theirs = tokenizer(list(TEXTS), padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    for pipeline in (opened.pipeline, again.pipeline, bridge):
        assert pipeline is not None
        assert [pipeline.fixed(text).tolist() for text in TEXTS] == theirs
    ids = torch.tensor(theirs)
    ours = [torch.nn.functional.normalize(model.text(ids).pooled, dim=-1) for model in (opened.model, again.model)]
    assert all(peers.gap(embedding, peer.text(ids)) < 1e-5 for embedding in ours)


def test_a_tokenizer_like_gpt2s_is_written_so_that_plain_transformers_agrees(tmp_path: Path) -> None:
    pipeline = TextPipeline.load(str(like_gpt2(tmp_path)), 64)
    pipeline.save_pretrained(tmp_path / "saved")
    plain = AutoTokenizer.from_pretrained(tmp_path / "saved")
    given = plain(list(TEXTS), padding="max_length", max_length=64, truncation=True)["input_ids"]
    assert given == [pipeline.fixed(text).tolist() for text in TEXTS]
    assert given[1] != given[0] and pipeline.ids("A Red apple") == pipeline.ids("a red apple")


def test_a_tokenizer_that_can_not_be_written_so_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "</s>", "a", "r", "e", "d"]))
    slow = BertJapaneseTokenizer(
        str(tmp_path / "vocab.txt"), word_tokenizer_type="basic", subword_tokenizer_type="character", eos_token="</s>"
    )
    pipeline = TextPipeline.around(slow, 8)
    with pytest.raises(UserError, match="can't be written so that plain transformers gives the ids"):
        pipeline.save_pretrained(tmp_path)


@pytest.mark.parametrize("how", ["released", "around", "load"])
def test_a_tokenizer_that_pads_on_the_left_is_read_right_with_one_warning(how: str, tmp_path: Path) -> None:
    peers.tokenizer(side="left").save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        match how:
            case "released":
                pipeline = released(tmp_path, VOCABULARY, LENGTH)
            case "around":
                pipeline = TextPipeline.around(AutoTokenizer.from_pretrained(tmp_path), LENGTH)
            case _:
                pipeline = TextPipeline.load(str(tmp_path), LENGTH)
    assert [("pads on the left" in str(warning.message)) for warning in said] == [True]
    plain = peers.tokenizer()(list(TEXTS), padding="max_length", max_length=LENGTH, truncation=True)["input_ids"]
    assert [pipeline.fixed(text).tolist() for text in TEXTS] == plain


def test_lower_case_is_the_policys_to_say() -> None:
    pipeline = TextPipeline.around(peers.tokenizer(), LENGTH)
    tokenizer = peers.tokenizer()
    tokenizer.backend_tokenizer.normalizer = peers.normalizers.Replace(" ", "▁")  # knows lower-case letters alone
    kept = TextPipeline(tokenizer, type(pipeline.policy)(LENGTH, lower=False))
    lowered = TextPipeline(tokenizer, type(pipeline.policy)(LENGTH, lower=True))
    unknown = tokenizer.unk_token_id
    assert unknown in kept.ids("a Red") and unknown in kept.fixed("a Red")
    assert unknown not in lowered.ids("a Red") and unknown not in lowered.fixed("a Red")
    assert lowered.ids("a Red") == lowered.ids("a red")


def test_siglip_1s_class_is_read_from_its_tokenizer_json_too(siglip1: Path, tmp_path: Path) -> None:
    from_pieces, folder = released(siglip1), tmp_path / "json"
    from_pieces.tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))
    from_json = released(folder)
    assert from_json.policy == from_pieces.policy
    for text in TEXTS:
        assert np.array_equal(from_json.fixed(text), from_pieces.fixed(text)) and from_json.ids(
            text
        ) == from_pieces.ids(text)
    (siglip1 / "tokenizer_config.json").unlink()
    assert released(siglip1).policy == from_pieces.policy


@pytest.mark.parametrize("place", ["added", "vocabulary"])
def test_an_id_beyond_any_table_is_refused_before_the_library_makes_room_for_it(place: str, tmp_path: Path) -> None:
    """The library aborts the process over it, so without the check this test does not end."""
    pipeline = TextPipeline.train(["a red fox"], size=300, length=LENGTH)
    policy = pipeline.save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "tokenizer.json").read_text())
    if place == "added":
        facts["added_tokens"][0]["id"] = 2**31
    else:
        facts["model"]["vocab"]["a"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    for read in (
        lambda: TextPipeline.from_pretrained(tmp_path, policy),
        lambda: TextPipeline.load(str(tmp_path), LENGTH),
        lambda: TextPipeline.load(str(tmp_path / "tokenizer.json"), LENGTH),
    ):
        with pytest.raises(UserError, match="has the number 2147483648, beyond any id of a tokenizer"):
            read()
