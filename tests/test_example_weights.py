"""`--example-weights`: rows come as often as they weigh, by arithmetic, and a file of other data is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Run
from numpy.typing import NDArray
from test_resume import assert_same_end, cut_short
from test_sources_order import rows

from opensiglip.apps.cli import main
from opensiglip.data.fields.frame import Frame
from opensiglip.data.loader import DataPlan, Steps
from opensiglip.data.order import Joined, Lanes, Mixture, Weighted, order_of, shares_of
from opensiglip.data.sources.registry import open_source
from opensiglip.data.sources.subset import Subset
from opensiglip.data.weighting.file import read_weights, write_weights
from opensiglip.errors import UserError
from opensiglip.training.config import TrainConfig


def uneven(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Weights from 0 to 3, of which every fifth is 0, with a total that is no whole number."""
    weights = np.random.default_rng(seed).uniform(0, 3, count)
    weights[::5] = 0
    return weights


@pytest.mark.parametrize(("shards", "lanes"), [(None, 1), ([100] * 10, 4), ([0, 300, 1, 699, 0], 2)])
def test_each_epoch_has_a_row_floor_or_ceil_of_its_weight_times_and_as_often_on_average(
    shards: list[int] | None, lanes: int
) -> None:
    weights = uneven(1000)
    order = Weighted(weights, round(weights.sum()), 7, shards, lanes)
    scaled = weights * order.rows / weights.sum()
    found = order.find(np.arange(400 * order.rows)).reshape(400, order.rows)
    counts = np.stack([np.bincount(epoch, minlength=1000) for epoch in found])
    assert (counts >= np.floor(scaled - 1e-9)).all() and (counts <= np.ceil(scaled + 1e-9)).all()
    assert np.abs(counts.mean(0) - scaled).max() < 0.13, "five standard errors of a coin over 400 epochs"
    assert not counts[:, weights == 0].any()
    assert not np.array_equal(found[0], found[1])


def test_weights_of_0_and_1_give_the_same_rows_once_in_each_epoch() -> None:
    weights = (np.arange(500) % 3 != 0).astype(float)
    for shards in (None, [50] * 10):
        order = Weighted(weights, int(weights.sum()), 1, shards, 4)
        for epoch in range(3):
            found = order.find(np.arange(order.rows) + epoch * order.rows)
            assert sorted(found) == np.flatnonzero(weights).tolist()


def test_a_shard_without_weight_is_never_opened_and_few_are_open_at_once() -> None:
    weights = uneven(200 * 500, 1)
    weights[:1500] = weights[-500:] = 0  # three shards of 200 at one end, one at the other
    order = Weighted(weights, round(weights.sum()), 0, [500] * 200, 8)
    opened = order.find(np.arange(order.rows)) // 500
    assert set(opened) == set(range(3, 199))
    alone = Lanes([500] * 196, 0, 8)
    assert 0 < order.window == order.lanes.window < order.rows // 50
    windows = opened[: 40 * order.window].reshape(40, order.window)
    most = max(len(np.unique(window)) for window in windows)
    assert most <= 3 * alone.lanes < 196 / 8, "two a lane, and the next one, in which the last point of one may lie"


def test_a_total_that_is_rounded_down_loses_no_point() -> None:
    for seed in range(200):
        weights = np.random.default_rng(seed).uniform(0, 3, 60)
        ends = np.cumsum(weights)
        rows = round(ends[-1])
        if (ends * (rows / ends[-1]))[-1] < rows:
            break
    else:
        pytest.fail("no such weights")
    for shards in (None, [20, 20, 20]):
        order = Weighted(weights, rows, 0, shards, 2)
        assert order.lanes.rows == order.rows and order.find(np.arange(3 * order.rows)).max() < 60


def test_positions_are_found_in_any_pieces_so_ranks_workers_and_resumed_runs_see_the_same() -> None:
    sources = [rows(500, shards=[100] * 5, lanes=2, example_weights=uneven(500)), rows(70, example_weights=uneven(70))]
    whole = order_of(sources, 5).find(np.arange(3000))
    pieces = [order_of(sources, 5).find(np.arange(first, first + 30)) for first in range(0, 3000, 30)][::-1]
    for number in range(2):
        assert np.array_equal(whole[number], np.concatenate([piece[number] for piece in pieces[::-1]]))


def test_sources_count_the_rows_of_their_epochs() -> None:
    halved = (np.arange(400) % 2).astype(float)
    assert shares_of([rows(400, example_weights=halved), rows(200)]) == [0.5, 0.5]
    order = order_of([rows(400, example_weights=halved, weight=3.0), rows(200, weight=1.0)], 0)
    assert isinstance(order, Mixture) and np.bincount(order.find(np.arange(400))[0]).tolist() == [300, 100]
    assert isinstance(order_of([rows(400), rows(200)], 0), Joined), "nothing changes where no source has weights"


def weighted(folder: str) -> Any:
    source = open_source(folder)
    source.example_weights = (np.arange(len(source)) % 2).astype(float)
    return source


def test_the_place_of_a_broken_row_goes_to_no_row_of_weight_0(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = weighted(folder), []
    example = source.example

    def broken(index: int, language: str | None = None) -> Any:
        read.append(index)
        return example(-1) if index == 1 else example(index, language)

    monkeypatch.setattr(source, "example", broken)
    facts: dict[str, Any] = {"frame": Frame(8), "fields": [], "pipeline": None, "batch_size": 4, "seed": 0}
    steps, skipped = Steps(DataPlan(sources=[source], **facts)), Counter[str]()
    for position in range(source.epoch_rows):
        steps.visit(position, skipped, Frame(8))
    assert skipped.total() == 1 and 1 in read and all(index % 2 for index in read)


def test_what_is_set_aside_takes_its_weights_with_it(folder: str) -> None:
    source = weighted(folder)
    kept = Subset(source, range(1, len(source)))
    assert kept.example_weights is not None and kept.example_weights.tolist() == source.example_weights[1:].tolist()
    assert kept.epoch_rows == source.epoch_rows == len(source) // 2
    with pytest.raises(UserError, match="are 0 for every example that is not set aside"):
        Subset(source, [0, 2])


def table(file: Path, weights: Any, name: str = "weight") -> Path:
    pq.write_table(pa.table({name: weights}), file)
    return file


def test_a_file_of_weights_is_read_as_it_was_written_and_one_of_other_data_refused(folder: str, tmp_path: Path) -> None:
    source, file = open_source(folder), tmp_path / "weights.parquet"
    weights = np.arange(len(source)) / 4
    write_weights(file, weights, source)
    assert read_weights(file, source).tolist() == weights.tolist()
    scenes = open_source(f"scenes:count={len(source)}")
    with pytest.raises(UserError, match=f"{file} was written for other examples than scenes.* has now"):
        read_weights(file, scenes)
    own = table(tmp_path / "own.parquet", weights.astype(np.float32))
    assert read_weights(own, scenes).tolist() == weights.tolist(), "what does not say is taken"


@pytest.mark.parametrize(
    ("weights", "name", "words"),
    [
        ([1.0, 2.0], "weight", r"has 2 rows, the train split of .* \d+"),
        ([-1.0], "weight", "row 0 has the weight -1.0"),
        ([float("nan")], "weight", "row 0 has the weight nan"),
        ([None], "weight", "row 0 has the weight nan"),
        ([float("inf")], "weight", "row 0 has the weight inf"),
        ([0.0], "weight", "all weights are 0"),
        ([1e-5], "weight", "scale them to a mean of about 1"),
        ([2000.0], "weight", "are 2e.03 on average.*scale them to a mean of about 1"),
        (["one"], "weight", "can't be read as parquet with a column `weight` of numbers"),
        ([1.0], "other", "can't be read as parquet with a column `weight` of numbers"),
    ],
)
def test_weights_that_are_none_are_refused_in_a_sentence(
    weights: list[Any], name: str, words: str, folder: str, tmp_path: Path
) -> None:
    source = open_source(folder)
    many = weights if len(weights) > 1 else weights * len(source)
    with pytest.raises(UserError, match=words):
        read_weights(table(tmp_path / "w.parquet", many, name), source)
    (tmp_path / "w.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="can't be read as parquet"):
        read_weights(tmp_path / "w.parquet", source)
    with pytest.raises(UserError, match="is not a file; check the path"):
        read_weights(tmp_path / "nowhere.parquet", source)


def test_there_is_a_file_for_each_source() -> None:
    with pytest.raises(UserError, match="names 1 file.s. for 2 --data; give one for each"):
        TrainConfig(data=("a", "b"), out=Path("run"), example_weights=("w.parquet",))
    assert TrainConfig(data="a", out=Path("run"), example_weights=Path("w.parquet")).example_weights == ("w.parquet",)


def test_a_run_reads_only_what_has_weight_resumes_bitwise_and_refuses_other_weights(
    folder: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, file = open_source(folder), tmp_path / "weights.parquet"
    write_weights(file, (np.arange(len(source)) % 3).astype(float), source)
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    run(straight, example_weights=[str(file)])
    cut_short(4, lambda: run(cut, example_weights=[str(file)]))
    run(cut, example_weights=[str(file)], resume=True)
    assert_same_end(cut, straight)
    write_weights(file, np.ones(len(source)), source)
    with pytest.raises(UserError, match=f"data: {folder} has other example weights than before.*--changed"):
        run(cut, example_weights=[str(file)], resume=True)


def test_the_flag_reaches_the_run(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "w.parquet", [1.0])
    words = ["train", "siglip", "--data", folder, "--out", str(tmp_path / "r"), "--example-weights", str(file)]
    assert main(words) == 2
    assert f"--example-weights {file} has 1 rows" in capsys.readouterr().err
