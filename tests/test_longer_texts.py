"""Texts that grow: short ones keep their embeddings, in a tower that reads padding too."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import opensiglip
from opensiglip.data.text import TextPipeline, TextPolicy
from opensiglip.models.lora import add
from opensiglip.models.model import Model
from opensiglip.models.resize import stretch_positions
from opensiglip.models.sizes import Architecture, Shape
from opensiglip.models.towers import Text
from opensiglip.training import longer_texts
from opensiglip.training.longer_texts import POSITIONS, ShortTexts, fitted, of_state, random_texts
from opensiglip.training.run import train

SHAPE, CPU = Shape(32, 2, 64, 2), torch.device("cpu")


def tower(length: int, vocabulary: int = 300) -> Text:
    torch.manual_seed(0)
    text = Model.new(Architecture(32, 8, length, SHAPE, SHAPE, None), vocabulary).text
    assert isinstance(text, Text)
    return text.eval()


def stretched(text: Text, length: int) -> torch.Tensor:
    table = text.state_dict()[POSITIONS]
    return stretch_positions(f"text.{POSITIONS}", table, torch.empty(length, table.shape[1]))


def test_fitted_positions_keep_the_embeddings_of_texts_that_they_were_not_fitted_on() -> None:
    old, policy = tower(24), TextPolicy(length=24)
    known = random_texts(256, 24, 300, policy, torch.Generator().manual_seed(7))
    plain = stretched(old, 32)
    fit = fitted(old.requires_grad_(False), plain, policy, known)
    assert torch.equal(fit.positions[:20], plain[:20]) and fit.positions.shape == plain.shape
    new = tower(32)
    new.load_state_dict(old.state_dict() | {POSITIONS: fit.positions})
    texts = random_texts(100, 24, 300, policy, torch.Generator().manual_seed(8))
    longer = torch.cat([texts, torch.zeros(100, 8, dtype=torch.long)], 1)  # 0 is the padding
    with torch.no_grad():
        cosine = F.cosine_similarity(new(longer).pooled, old(texts).pooled)
        new.load_state_dict(old.state_dict() | {POSITIONS: plain})
        before = F.cosine_similarity(new(longer).pooled, old(texts).pooled)
    assert cosine.mean() > 0.999 > 0.99 > before.mean()
    assert fit.after == pytest.approx(cosine.mean().item(), abs=1e-3)
    assert fit.before == pytest.approx(before.mean().item(), abs=1e-2)
    again = fitted(old, plain, policy, known)
    assert torch.equal(again.positions, fit.positions), "every run draws the same"


def test_of_texts_that_are_shorter_than_what_stays_all_but_the_last_two_positions_stay() -> None:
    old, policy = tower(16).requires_grad_(False), TextPolicy(length=16)
    plain = stretched(old, 24)
    fit = fitted(old, plain, policy, torch.empty(0, 16, dtype=torch.long))
    assert torch.equal(fit.positions[:14], plain[:14]) and fit.after > fit.before
    assert (fit.positions[14:] != plain[14:]).any(1).all()


def test_positions_that_fit_no_better_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    old, policy = tower(24).requires_grad_(False), TextPolicy(length=24)
    plain = stretched(old, 32)
    monkeypatch.setattr(longer_texts, "RATE", 1e3)
    fit = fitted(old, plain, policy, torch.empty(0, 24, dtype=torch.long))
    assert fit.positions is plain and fit.before == fit.after


def test_half_of_a_steps_texts_are_the_datas_and_a_quarter_of_these_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are by Adam and ever shorter: by a tenth of the words' deviation, then by half of that."""
    old, policy, seen, forward = tower(24).requires_grad_(False), TextPolicy(length=24), list[Any](), Text.forward
    monkeypatch.setattr(Text, "forward", lambda self, ids: seen.append(ids.tolist()) or forward(self, ids))
    monkeypatch.setattr(longer_texts, "STEPS", 2)
    known = random_texts(160, 24, 300, policy, torch.Generator().manual_seed(7))
    judges, learned, plain = known[:40].tolist(), known[40:].tolist(), stretched(old, 32)
    fit = fitted(old, plain, policy, known)
    assert seen[2] + seen[3] == seen[4] + seen[5] == judges and len(seen) == 6
    for step in seen[:2]:
        assert [ids in learned for ids in step] == [True] * 16 + [False] * 16
        assert not any(ids in judges for ids in step)
    rate = 0.1 * old.tower.embeddings.token_embedding.weight.std()
    assert float((fit.positions - plain).abs().max() / rate) == pytest.approx(1.5, abs=0.02)
    assert (fit.positions != plain).any(1).tolist() == [False] * 20 + [True] * 12
    seen.clear()
    fitted(old, plain, policy, known[:127])  # 31 would judge, which are few
    assert sum(ids in known.tolist() for step in seen[:2] for ids in step) < 8, "by chance: random ones"


def test_texts_that_are_too_long_to_fit_on_at_once_are_fitted_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    old, policy, tokens, read = tower(24).requires_grad_(False), TextPolicy(length=24), list[int](), Text.read

    def noted(self: Text, embedded: torch.Tensor) -> Any:
        tokens.append(embedded[..., 0].numel())
        return read(self, embedded)

    monkeypatch.setattr(longer_texts, "STEPS", 3)
    monkeypatch.setattr(Text, "read", noted)
    found = []
    for at_once, most in ((10**6, 32 * 40), (5 * 40 + 39, 5 * 40), (1, 40)):
        monkeypatch.setattr(longer_texts, "AT_ONCE", at_once)
        tokens.clear()
        found.append(fitted(old, stretched(old, 40), policy, torch.empty(0, 24, dtype=torch.long)))
        assert max(tokens) == most
    for fit in found[1:]:
        torch.testing.assert_close(fit.positions, found[0].positions, rtol=0, atol=1e-4)
        assert fit.after == pytest.approx(found[0].after, abs=1e-5)


def test_random_texts_end_within_the_positions_that_stay() -> None:
    policy = TextPolicy(length=24, pad_id=5, eos_id=6)
    texts = random_texts(2000, 24, 7, policy, torch.Generator().manual_seed(0))
    ends = torch.tensor([max(place for place in range(24) if row[place] == 6) for row in texts])
    assert (ends.min(), ends.max()) == (1, 19) and (texts[:, 20:] == 5).all()
    assert all((row[end + 1 :] == 5).all() for row, end in zip(texts, ends, strict=True))
    assert set(texts[:, 0].tolist()) == set(range(7))


class Texts:
    """A source of texts alone."""

    def __init__(self, *texts: str) -> None:
        self.given = texts

    def texts(self) -> Any:
        yield from self.given


def test_texts_of_the_data_are_short_ones_from_every_source(
    pipeline: TextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "red green blue white " * 8
    sources: Any = [Texts("a red square", long, "a red square", "a blue one"), Texts("a green circle", "white")]
    found = ShortTexts(pipeline, sources).read(24)
    rows = [pipeline.with_length(24).fixed(text).tolist() for text in ("a red square", "a blue one", "a green circle")]
    assert found.tolist()[:3] == rows and len(found) == 4
    monkeypatch.setattr(longer_texts, "READ", 2)
    assert ShortTexts(pipeline, sources).read(24).tolist() == rows[::2], "one of each"


def test_what_reads_no_padding_or_does_not_grow_or_has_loras_weights_stays(pipeline: TextPipeline) -> None:
    old, short = tower(24), ShortTexts(pipeline, [])
    state, plain = dict(old.state_dict()), stretched(old, 32)
    assert short.keep(None, state, plain, CPU) is plain
    assert short.keep(old, state, state[POSITIONS], CPU) is state[POSITIONS]
    add(old.tower, 2)
    assert short.keep(old, dict(old.state_dict()), plain, CPU) is plain


def test_a_tower_of_stored_weights_is_the_tower(pipeline: TextPipeline) -> None:
    old, longer = tower(24), tower(40)
    state = {name: x.to(torch.bfloat16) for name, x in old.state_dict().items()}
    found = of_state(longer.tower.config, state, CPU)
    assert found is not None and longer.tower.config.max_position_embeddings == 40
    old.load_state_dict(state)
    ids = torch.randint(300, (3, 24))
    assert torch.equal(found(ids).pooled, old(ids).pooled)
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_run_with_longer_texts_says_what_it_fits_and_a_resumed_one_does_not_fit_again(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"data": [folder], "batch_size": 4, "workers": 0, "held_out": 0, "precision": "fp32"}
    old, new = tmp_path / "old", tmp_path / "new"
    train("siglip", out=old, size="32x2x64x2/8", resolution=32, length=24, vocabulary=300, steps=1, **given)
    given |= {"init": str(old), "out": new, "length": 40, "lr": 1e-9}
    capsys.readouterr()
    for steps, again in ((1, {}), (2, {"resume": True, "changed": True})):
        train("siglip", steps=steps, **given, **again)
        said = capsys.readouterr().out
        assert ("text        grows from 24 to 40 tokens: 200 steps of 32 texts" in said) != bool(again)
        assert ("text        short texts keep their embeddings to a cosine of 0.99" in said) != bool(again)
    embedded = [opensiglip.load(str(one)).embed_texts(["a red square", "two circles"]) for one in (old, new)]
    assert (embedded[0] * embedded[1]).sum(1).min() > 0.99
