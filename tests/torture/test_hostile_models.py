"""Mutated folders of every format that is read: each opens, or is one sentence, in bounded time and memory."""

import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

import pytest

from opensiglip.checkpoints.pretrained import Pretrained

good_models = pytest.importorskip("good_models", reason="the peers' libraries make the folders")
from forked import Outcome, forked  # noqa: E402
from mutations import mutate  # noqa: E402

LEAST = 64 << 20  # bytes that opening may take whatever the good folder takes: imports, tracebacks, buffers


def test_a_mutated_model_opens_or_is_one_sentence(
    tmp_path: Path, torture_count: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # threads do not survive a fork
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    formats, count = list(good_models.MAKERS), torture_count(17)
    most: dict[str, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in good_models.MAKERS.items():
            make(tmp_path / name)
            Pretrained.open(tmp_path / name)  # what the process keeps, it keeps before it is forked
            opened = forked(lambda name=name: Pretrained.open(tmp_path / name))
            assert opened.kind == "opened", (name, opened.words)
            most[name] = max(2 * opened.memory, LEAST)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    bad: list[str] = []
    for case in range(count):
        name, rng = formats[case % len(formats)], Random(case)
        folder = tmp_path / f"{name} {case}"
        shutil.copytree(tmp_path / name, folder)
        done = mutate(folder, rng)
        outcome = forked(lambda folder=folder: Pretrained.open(folder))
        shutil.rmtree(folder)
        if outcome.memory > most[name]:
            outcome = outcome._replace(kind="memory", words=f"{outcome.memory >> 20} MB")
        outcomes[name].append(outcome)
        if outcome.kind not in ("opened", "refused"):
            bad.append(f"{case} {name}; {done}: {outcome.kind}: {outcome.words[-500:]}")
            print(bad[-1], flush=True)
        if (case + 1) % 500 == 0 and case + 1 < count:
            show(outcomes)
    show(outcomes)
    assert not bad, f"{len(bad)} of {count}\n" + "\n".join(bad[:200])


def show(outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """A line for each format, and one for all."""
    titles = f"{'crashes':>9}{'hangs':>7}{'memory':>8}{'slowest':>9}{'most':>9}"
    print(f"{'format':<22}{'cases':>6}{'opened':>8}{'refused':>9}{titles}")
    for name, found in [*outcomes.items(), ("all", [one for some in outcomes.values() for one in some])]:
        kinds = Counter(outcome.kind for outcome in found)
        counts = f"{kinds['opened']:>8}{kinds['refused']:>9}{kinds['crash']:>9}{kinds['hang']:>7}{kinds['memory']:>8}"
        slowest, most = max(one.seconds for one in found), max(one.memory for one in found)
        print(f"{name:<22}{len(found):>6}{counts}{slowest:>7.1f} s{most >> 20:>6} MB", flush=True)
