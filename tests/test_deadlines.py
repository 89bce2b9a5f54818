"""No test hangs and none measures the machine: every wait has a deadline, and no two durations are compared."""

import ast
import time
from functools import cache
from pathlib import Path

import pytest
from deadline import deadline

TESTS = Path(__file__).parent
WAITS = {"run", "check_call", "check_output", "communicate", "join"}  # of processes and threads: each takes a timeout
STARTS = ("mp.spawn", "mp.start_processes", "context.Process", "mp.Process")
CLOCKS = {"perf_counter", "process_time", "time_ns", "perf_counter_ns"}


@cache
def calls() -> list[tuple[str, ast.Call, str]]:
    """file:line, call and what is called, of all tests."""
    found = []
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((f"{path.relative_to(TESTS)}:{node.lineno}", node, ast.unparse(node.func)))
    return found


def test_a_test_that_waits_for_ever_is_ended() -> None:
    with pytest.raises(TimeoutError, match="after 0.05 seconds"), deadline(0.05):
        time.sleep(20)
    time.sleep(0.1)  # and no alarm is left behind


def test_every_process_that_is_waited_for_has_a_deadline() -> None:
    missing = [
        place
        for place, call, name in calls()
        if (name.startswith("subprocess.") or name.endswith((".communicate", ".join")))
        and name.rpartition(".")[2] in WAITS
        and "timeout" not in {keyword.arg for keyword in call.keywords}
        and not (name.endswith(".join") and call.args)  # of a text or a path, whose parts have to be given
    ]
    assert missing == []


def test_processes_that_are_left_behind_end_with_the_tests() -> None:
    """A rank that waits for another one, whose test has been ended, would keep the interpreter from ending."""
    spawned = [(place, call) for place, call, name in calls() if name in STARTS]
    assert len(spawned) >= 3
    daemons = {place for place, call in spawned for k in call.keywords if k.arg == "daemon"}
    assert [place for place, _ in spawned if place not in daemons] == []


def test_no_test_compares_durations() -> None:
    """Ratios of wall-clock times hang on what else the machine does; deadlines, by `time.monotonic`, may stay."""
    measured = [place for place, _, name in calls() if name.rpartition(".")[2] in CLOCKS]
    assert measured == []
