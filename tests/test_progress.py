"""Lines of progress where no bar can be drawn: when they come, and what they say."""

import sys
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from opensiglip import progress
from opensiglip.apps.cli import main
from opensiglip.progress import Lines, duration
from opensiglip.training.log import summary


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds that pass when the test says so."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_line_comes_after_the_first_units_and_then_every_half_minute(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines(total=100, unit="step", initial=10, first=20)
    for _ in range(80):  # 2 s each: 20 of them take 40 s, of the 90 that are to do 70 are left, 140 s
        clock.now += 2
        lines.set_postfix_str("loss 1.5")
        lines.update()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == [f"step {n} of 100" for n in (25, 30, 45, 60, 75, 90)]
    assert said[0] == "step 25 of 100, loss 1.5", "too few for an estimate"
    assert said[1] == "step 30 of 100, 2 min left, loss 1.5"
    assert said[-1] == "step 90 of 100, 20 s left, loss 1.5"


def test_quick_work_is_done_without_a_line(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress(iter("abc"), desc="read")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_lines_go_on_where_the_total_is_not_known(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress.progress(iter("ab"), desc="read", unit="row"):
        clock.now += 31
    assert capsys.readouterr().err.splitlines() == ["read: row 1", "read: row 2"]


@pytest.mark.parametrize(("tty", "kind"), [(True, tqdm), (False, Lines)])
def test_a_terminal_has_a_bar_and_a_log_file_lines(tty: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty, raising=False)
    with progress.progress(total=2) as bar:
        assert type(bar) is kind


def test_quiet_hides_progress_and_is_a_flag_of_every_command(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash", "--quiet"]) == 0 and progress.quiet
    for _ in progress.progress(iter("ab")):
        clock.now += 31
    assert main(["--version"]) == 0 and not progress.quiet, "of this call alone"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "words"), [(89, "89 s"), (91, "2 min"), (5000, "83 min"), (9000, "2.5 h")])
def test_time_is_said_in_the_unit_that_people_use(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_note_names_the_loss_its_terms_and_the_rate() -> None:
    row = {"loss": 5.25, "loss/sigmoid": 3.25, "loss/caption": 2.0, "loss/late": None, "images_per_second": 71.6}
    assert summary(row) == "loss 5.250 (sigmoid 3.250, caption 2.000), 72 images/s"
    assert summary({"loss": None, "images_per_second": 3.0}) == "step skipped"


def test_what_is_not_to_be_shown_is_not_and_a_list_has_its_total(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    for show in (False, True):
        for _ in progress.progress(["a", "b"], show=show):
            clock.now += 31
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["item 1 of 2", "item 2 of 2"]
