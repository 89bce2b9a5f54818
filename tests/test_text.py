"""The text pipeline: what plain transformers gives for the exported tokenizer, and nothing unknown to it."""

import re
import unicodedata
from itertools import islice
from pathlib import Path

import numpy as np
import once
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from toys import like_gpt2
from transformers import AutoTokenizer

from opensiglip.data import tokenizers
from opensiglip.data.boxes import BoxFormat
from opensiglip.data.fields.captions import PREFIXES, task_words
from opensiglip.data.scenes.source import open_scenes
from opensiglip.data.text import TextPipeline, TextPolicy
from opensiglip.errors import UserError

TEXTS = [
    "A red apple, to the LEFT of a fox!",
    " a box",
    "a box ",
    "",
    " ",
    "numbers 0 10 485 and 1234567",
    "naïve Café ﬁne ² Ⅷ",
    "赤いリンゴ — یک سیب 🍎",
    "two  spaces\tand\na line",
    "</s> <pad> [MASK]",
    "word " * 100,
    "x" * 500,
]


def scene_texts(count: int = 400) -> list[str]:
    return list(islice(open_scenes("scenes:languages=en+de+ja").texts(), count))


@pytest.fixture(scope="module")
def pipeline() -> TextPipeline:
    return TextPipeline.train(scene_texts(), size=500)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> TextPipeline:
    return TextPipeline.load(str(like_gpt2(tmp_path_factory.mktemp("gpt2"))), 64)


@pytest.fixture(scope="module")
def exported(pipeline: TextPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    assert pipeline.save_pretrained(folder) == vars(TextPolicy())
    return folder


def test_plain_transformers_gives_the_same_ids_for_the_exported_tokenizer(
    pipeline: TextPipeline, exported: Path
) -> None:
    given = AutoTokenizer.from_pretrained(exported)(TEXTS, padding="max_length", max_length=64, truncation=True)
    assert given["input_ids"] == [pipeline.fixed(text).tolist() for text in TEXTS]
    assert list(given) == ["input_ids"], "no attention mask: the towers take none"


@settings(deadline=None)
@given(st.text(max_size=40))
def test_plain_transformers_agrees_on_any_text(pipeline: TextPipeline, text: str) -> None:
    given = pipeline.tokenizer(text, padding="max_length", max_length=64, truncation=True)["input_ids"]
    assert given == pipeline.fixed(text).tolist()


def test_the_pipeline_comes_back_from_its_folder(pipeline: TextPipeline, exported: Path) -> None:
    back = TextPipeline.from_pretrained(exported, vars(pipeline.policy))
    assert back.policy == pipeline.policy and len(back) == len(pipeline)
    assert [back.fixed(text).tolist() for text in TEXTS] == [pipeline.fixed(text).tolist() for text in TEXTS]


def test_eos_is_sticky_and_padding_follows_it(pipeline: TextPipeline) -> None:
    for text in TEXTS:
        ids = pipeline.fixed(text)
        assert ids.shape == (64,) and ids.dtype == np.int64
        end = ids.tolist().index(1)
        assert not ids[end + 1 :].any() and ids[:end].all()
    assert pipeline.fixed("word " * 100)[-1] == 1
    assert pipeline.fixed("")[0] == 1


def test_words_of_the_tasks_are_one_token_each_whatever_the_data_holds() -> None:
    words = task_words(("cap", "aref", "gcap"), BoxFormat())
    pipeline = TextPipeline.train(["some text that never says them"] * 5000, size=2000, words=words)
    assert all(len(pipeline.ids(f" {number}")) == 1 for number in range(501))
    assert [len(pipeline.ids(prefix)) for prefix in PREFIXES.values()] == [2, 2, 2], "the word and the colon"
    assert len(pipeline.ids(" 501")) > 1
    assert task_words(("cap",), BoxFormat()) == task_words((), BoxFormat()) == ""


def test_case_and_spaces_around_make_no_difference(pipeline: TextPipeline) -> None:
    assert pipeline.ids("A Red APPLE") == pipeline.ids("a red apple") == pipeline.ids(" a red apple ")
    assert pipeline.ids("ＡＰＰＬＥ") == pipeline.ids("apple"), "NFKC"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40))  # what this Python knows the case of
def test_any_text_comes_back_up_to_normalisation(pipeline: TextPipeline, text: str) -> None:
    ids = pipeline.ids(text)
    assert all(2 <= token < len(pipeline) for token in ids), "neither padding nor an end comes from a text"
    back = pipeline.text(ids)
    normal = re.sub(r"\s", "", unicodedata.normalize("NFKC", text.lower()).lower())
    assert re.sub(r"\s", "", back).replace("ς", "σ") == normal.replace("ς", "σ")


def test_no_character_is_read_otherwise_by_plain_transformers(pipeline: TextPipeline) -> None:
    """All characters that normalising changes, two hundred at a time, in the middle of a word and at its end."""
    characters = [c for c in map(chr, range(0x110000)) if c.isspace() or unicodedata.normalize("NFKC", c.lower()) != c]
    texts = ["".join(f"a{c}b{c} " for c in characters[at : at + 200]) for at in range(0, len(characters), 200)]
    plain = pipeline.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert len(characters) > 6000
    assert all(tuple(ids) == pipeline.ids(text) for ids, text in zip(plain, texts, strict=True))


def test_nothing_is_unknown(pipeline: TextPipeline) -> None:
    assert pipeline.tokenizer.unk_token is None
    assert pipeline.text(pipeline.ids("ქართული 🦊 ∮ שלום")) == "ქართული 🦊 ∮ שלום"


def test_training_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "train", once.TRAIN)
    texts = scene_texts(150)
    one, two = (TextPipeline.train(texts, size=350).tokenizer.backend_tokenizer.to_str() for _ in range(2))
    assert one == two


def test_a_trained_vocabulary_keeps_to_its_size_and_its_fixed_ids(pipeline: TextPipeline) -> None:
    assert len(pipeline) <= 500
    assert pipeline.tokenizer.convert_tokens_to_ids(["<pad>", "</s>"]) == [0, 1] == [0, pipeline.policy.eos_id]


def test_a_tokenizer_without_padding_gets_one_that_is_not_its_end(gpt2: TextPipeline, tmp_path: Path) -> None:
    policy = gpt2.policy
    assert policy.pad_id != policy.eos_id and policy.pad_id == len(gpt2) - 1
    ids = gpt2.fixed("a red apple")
    assert (ids == policy.eos_id).sum() == 1 and (ids == policy.pad_id).sum() > 50
    gpt2.save_pretrained(tmp_path)
    back = TextPipeline.from_pretrained(tmp_path, vars(policy))
    assert back.fixed("a red apple").tolist() == ids.tolist() and back.text(ids.tolist()) == "a red apple"


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="end-of-text"):
        TextPipeline.load(str(tmp_path / "tokenizer.json"), 64)


def test_an_unreadable_tokenizer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="--tokenizer"):
        TextPipeline.load(str(tmp_path / "tokenizer.json"), 64)
    with pytest.raises(UserError, match="export the run again"):
        TextPipeline.from_pretrained(tmp_path, {})


def test_a_mask_policy_other_than_none_is_refused(pipeline: TextPipeline) -> None:
    with pytest.raises(UserError, match="mask='padding'"):
        TextPipeline(pipeline.tokenizer, TextPolicy(mask="padding"))


def test_calls_on_the_tokenizer_do_not_change_the_pipeline(pipeline: TextPipeline) -> None:
    before = pipeline.fixed("another text than before").tolist()
    pipeline.tokenizer(["a"], padding="max_length", max_length=5, truncation=True)
    fresh = TextPipeline(pipeline.tokenizer, pipeline.policy)
    assert fresh.fixed("another text than before").tolist() == before
