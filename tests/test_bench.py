"""The measurements run, check that what they compare agrees, and write what they print."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forkserver import start_ranks
from test_plan import OPENED, opened
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import BENCHES
from benchmarks.captions import packed, padded, texts
from benchmarks.case import Case
from benchmarks.measure import Variant, agree, compare, sample, start
from opensiglip.apps.cli import main
from opensiglip.models.sizes import HeadShape, architecture

CPU = torch.device("cpu")
SMALL = {
    "sigmoid": "--sizes 24 --width 8",
    "lm-head": "--vocabularies 50 --tokens 20 --width 8",
    "decoder": "--images 2 --tokens 4 --length 24 --width 64 --depth 1 --vocabulary 50",
    "step": "--size 64x2x128x2/16 --images 2 --vocabulary 50 --precision fp32 bf16",
    "input": "--count 2 --resolution 32",
    "order": "--rows 5000 --row-shards 7 --positions 500 --shards 3 --resumed 9 --examples 200",
    "decoding": "--phrases 2 --images 1 --tokens 4 --width 32 --depth 1",
    "search": "--vectors 50 --width 8 --queries 2",
    "attention": "--images 2 --tokens 8 --heads 2 --width 16",
    "muon": "--width 16 --depth 1",
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No repeats, and small products."""
    monkeypatch.setattr("benchmarks.measure.SHORTEST", 0.0)
    monkeypatch.setattr("benchmarks.measure.PRODUCT", {"cpu": 64})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def ran(name: str, words: str, out: Path) -> dict[str, Any]:
    assert main(["bench", name, *words.split(), "--rounds", "1", "--out", str(out)]) == 0
    assert (out / f"{name}.png").stat().st_size > 1000
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.parametrize("name", SMALL)
def test_a_measurement_names_ours_and_a_peer_and_writes_what_it_prints(
    name: str, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = "" if name in ("input", "order", "decoding", "search") else " --device cpu"
    made = ran(name, SMALL[name] + device, tmp_path)
    said = capsys.readouterr().out
    names = {row["variant"] for row in made["rows"]}
    assert any("opensiglip" in variant for variant in names) and any("opensiglip" not in variant for variant in names)
    for row in made["rows"]:
        assert row["variant"] in said and 0 < row["low"] <= row["seconds"] <= row["high"]
        assert row["peak_mib"] is None or row["peak_mib"] >= 0
    assert made["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_step_is_measured_on_shares_of_the_patches(quick: None, tmp_path: Path) -> None:
    made = ran("step", f"{SMALL['step']} --device cpu --keep-tokens 0.5 0.25", tmp_path)
    assert [row["variant"] for row in made["rows"]][:3] == [
        "opensiglip, all patches",
        "opensiglip, 0.5 of them",
        "opensiglip, 0.25 of them",
    ]
    assert len(made["rows"]) == 12 and all(row["per_second"] > 0 for row in made["rows"])


@pytest.mark.parametrize("kind", ["tar", "parquet", "folder"])
def test_every_kind_of_source_is_read_at_a_pace(kind: str, quick: None, tmp_path: Path) -> None:
    words = ["--kind", kind, "--count", "2", "--samples", "20", "--resolution", "32", "--rounds", "1"]
    assert main(["bench", "input", *words, "--out", str(tmp_path)]) == 0
    made = json.loads((tmp_path / f"input-{kind}.json").read_text())
    read = {row["variant"]: row for row in made["rows"] if row["case"].startswith(kind)}
    assert {f"opensiglip {kind}", "opensiglip folder"} <= read.keys()
    assert all(row["per_second"] > 0 for row in read.values())
    assert any(row["variant"] == "opensiglip index" for row in made["rows"]) == (kind == "tar")


def test_the_decoder_is_measured_over_regions(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ran("decoder", f"{SMALL['decoder']} --regions 0 2 --device cpu", tmp_path)
    cases = {row["case"] for row in made["rows"]}
    assert cases == {f"{kind}, {texts} texts" for kind in ("exact", "packed") for texts in (1, 5)}
    assert main(["bench", "decoder", "--regions", "-1", "--device", "cpu"]) == 2
    assert "--regions" in capsys.readouterr().err


def test_auto_is_a_device_that_is_there(quick: None) -> None:
    """A build for CUDA names it also where no driver is."""
    assert torch.ones(1, device=start("auto")).sum() == 1


def test_two_ranks_are_measured(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.multiprocessing.spawn", lambda work, given, nprocs: start_ranks(work, given, nprocs))
    made = ran("ranks", "--size 24 --ranks 1 2 --width 8 --images 4 --vocabulary 300", tmp_path)
    steps = {f"step of siglip2 tiny, {ranks} ranks" for ranks in (1, 2)}
    assert {row["case"] for row in made["rows"]} == {"N 24, 1 ranks", "N 24, 2 ranks"} | steps
    whole, sharded = (row["facts"]["in all MiB"] for row in made["rows"] if "2 ranks" in row["case"] and row["facts"])
    assert sharded < 0.55 * whole


def test_what_does_not_agree_is_not_compared() -> None:
    close = {"plain": [torch.ones(3)], "ours": [torch.ones(3) + 1e-6]}
    assert 0 < agree(close, "plain", 1e-5)["ours"] < 1e-5
    with pytest.raises(RuntimeError, match="ours is .* away from plain"):
        agree(close, "plain", 1e-8)


def test_the_peak_is_what_a_call_held_at_once() -> None:
    kept = torch.ones(4 << 20)
    seconds, peak = sample(lambda: torch.ones(16 << 20).sum() + kept.sum(), CPU)  # 64 MiB of float32
    assert seconds > 0
    assert peak is None or 60 < peak < 80


def test_speed_is_against_the_peer_and_the_floor_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.randn(256, 256)
    once, thrice = Variant("once", lambda: a @ a, 2 * 256**3, items=5), Variant("thrice", lambda: a @ a @ a @ a)
    monkeypatch.setattr("benchmarks.measure.PRODUCT", {"cpu": 256})
    first, second = compare("case", [once, thrice], "thrice", CPU, 3, torch.float32)
    assert first.speed > 1.5 and second.speed == 1
    assert first.over_floor is not None and 0.3 < first.over_floor < 3 and second.over_floor is None
    assert first.per_second == pytest.approx(5 / first.seconds)


def test_the_flop_of_steps_are_those_that_torch_counts() -> None:
    """Of 256 image tokens attention is a quarter; the formulas leave out the MAP head's own layers alone."""
    torch.manual_seed(0)
    networks = architecture("128x3x512x4/16", None, text=True, decoder=True)
    case = Case(networks, HeadShape(64, 32, 256), 8000, 2, CPU, torch.float32)
    formulas = {packet: opened(function) for packet, function in OPENED.items()}
    for step in case.whole_run():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            step.run()
        assert step.floor == pytest.approx(counter.get_total_flops(), rel=0.04), step.name


@pytest.mark.parametrize("parallel", [0.0, 1.0])
def test_padded_and_packed_texts_hold_the_same_tokens(parallel: bool) -> None:
    rows = texts(3, 3, 20, 50, parallel=parallel)
    one, three = packed(rows, 20, 50), padded(rows, 20, 50)

    def scored(batch: dict[str, torch.Tensor]) -> list[tuple[int, int, int]]:
        names = ("inputs", "targets", "positions")
        return sorted(zip(*(batch[name].flatten()[batch["scored"]].tolist() for name in names), strict=True))

    assert sum((scored(part) for part in three), []) and scored(one) == sorted(sum((scored(p) for p in three), []))
    assert all(part["inputs"].shape == (3, 20) for part in three)


@pytest.mark.parametrize(
    "words, part",
    [
        ("", f"name a measurement first: {', '.join(BENCHES[:-1])} or {BENCHES[-1]}."),
        ("xyz", f"no such measurement: 'xyz'; there are {', '.join(BENCHES[:-1])} and {BENCHES[-1]}."),
        ("sigmoid --sizes 0", "--sizes 0 is out of range; give a number of more than 0."),
        ("step --cases all", "--cases 'all' is unknown; there are contrastive"),
        ("step --keep-tokens 1", "--keep-tokens takes shares below 1"),
        ("step --precision fp8", "--precision 'fp8' is unknown; give fp32 or bf16."),
        ("gpu --parts all", "--parts 'all' is unknown; there are siglip, sigmoid,"),
        ("gpu --minutes -1", "--minutes and --workers can't be negative"),
        ("gpu --sizes Z/16", "--size 'Z/16' is unknown"),
        ("gpu --sizes B/16 --pairs 0", "--pairs 0 is out of range"),
        ("lm-head --device tpu", "--device 'tpu' is unknown; give auto, cpu or cuda."),
        ("input --data nowhere", "--data nowhere has no .jpg"),
    ],
)
def test_a_bad_word_is_one_sentence(words: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words.split()]) == 2
    assert part in capsys.readouterr().err
