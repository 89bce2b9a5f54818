"""Runs killed at any moment, damaged anywhere, on a full disk: each ends as the run that nothing happened to.

`make torture COUNT=100` kills fifty runs, twice each, and prints rows of the table of docs/reliability.md.
"""

import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conftest import SECONDS
from forkserver import context
from safetensors.torch import load_file
from victim import Moments, go, killed

from opensiglip.checkpoints.pretrained import Pretrained
from opensiglip.checkpoints.run_folder import RunFolder, manifest_of
from opensiglip.errors import Stopped, UserError
from opensiglip.training.log import read_lines


def forked(work: Callable[[], Any], said: Path) -> int:
    """The exit code of `work` in a process of its own, or minus its signal; what it says goes to a file."""
    child = context.Process(target=run, args=(work, said), daemon=True)
    child.start()
    child.join(timeout=SECONDS)
    assert child.exitcode is not None
    return child.exitcode


def run(work: Callable[[], Any], said: Path) -> NoReturn:
    """Do `work` and end the process with its exit code, as the command line has it."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except UserError as error:
        print(f"sentence: {error}")
        code = 2 if "\n" not in str(error) else 3
    except Stopped as error:
        print(f"sentence: {error}")
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def survey(recipe: str, folder: str, root: Path) -> None:
    """A run that nothing happens to, and a list of its moments."""
    moments = Moments(root / "run", None, killed).watch()
    go(recipe, folder, root / "run", resume=False)
    (root / "moments.json").write_text(json.dumps(moments.where))


def doomed(recipe: str, folder: str, out: Path, *, fatal: int, resume: bool) -> None:
    """A run that is killed at the moment of number `fatal`."""
    Moments(out, fatal, killed).watch()
    go(recipe, folder, out, resume=resume)


def cramped(recipe: str, folder: str, out: Path, limit: int) -> None:
    """A run whose files may be `limit` bytes long."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        go(recipe, folder, out, resume=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture(scope="module")
def straight(recipe: str, folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run that nothing happens to, and its moments."""
    root = tmp_path_factory.mktemp("straight")
    assert forked(partial(survey, recipe, folder, root), root / "said") == 0, (root / "said").read_text()
    return root / "run", json.loads((root / "moments.json").read_text())


def same(out: Path, other: Path) -> bool:
    """Are weights, optimizer, model, tokenizer and the rows of losses equal, bit for bit?"""
    last = RunFolder(other).newest()
    assert last is not None
    for file in (f"checkpoints/{last.name}/learner.safetensors", f"checkpoints/{last.name}/optimizer.safetensors"):
        ours, theirs = load_file(out / file), load_file(other / file)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            return False
    model = all((out / "model" / f).read_bytes() == (other / "model" / f).read_bytes() for f in MODEL)
    rows = [[{**row, "images_per_second": 0} for row in read_lines(run / "metrics.jsonl")] for run in (out, other)]
    return model and rows[0] == rows[1]


MODEL = ("model.safetensors", "decoder.safetensors", "tokenizer.json", "opensiglip.json", "config.json")


def report(title: str, counts: Counter[str]) -> None:
    """A row of the table in docs/reliability.md."""
    print(
        f"\n| {title} | {counts.total()} | {', '.join(f'{n} {what}' for what, n in counts.most_common())} |", flush=True
    )


def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(
    straight: tuple[Path, list[str]], recipe: str, folder: str, tmp_path: Path, torture_count: Callable[[int], int]
) -> None:
    """Twice each: at a moment of the run, and at one of its resumption, both drawn; then let end."""
    whole, moments = straight
    counts, where = Counter[str](), Counter[str]()
    for number in range((torture_count(2) + 1) // 2):
        rng, out, said = random.Random(number), tmp_path / str(number) / "run", tmp_path / f"said-{number}"
        for attempt in range(2):
            fatal = rng.randrange(1, len(moments) + 1 if attempt == 0 else len(moments) // 2)
            begun = RunFolder(out).config.is_file()
            code = forked(partial(doomed, recipe, folder, out, fatal=fatal, resume=begun), said)
            assert code in (0, -signal.SIGKILL), said.read_text()
            if code:
                where[moments[fatal - 1].split()[-1].split("/")[0] if attempt == 0 else "resumption"] += 1
            counts["killed" if code else "ended before"] += 1
            if RunFolder(out).complete():  # and whatever happened: what is saved can be opened
                assert forked(partial(Pretrained.open, out), said) == 0, said.read_text()
        begun = RunFolder(out).config.is_file()
        assert forked(partial(go, recipe, folder, out, resume=begun), said) == 0, said.read_text()
        assert same(out, whole), out
        assert not list(out.rglob("*.part")) and not RunFolder(out).lock.exists()
        counts["ended bit for bit as the straight run"] += 1
        shutil.rmtree(out.parent)
    report("kill -9", counts)
    print(f"killed at: {dict(where.most_common())}")


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zeros(path: Path, rng: random.Random) -> None:
    data, at = path.read_bytes(), rng.randrange(path.stat().st_size)
    path.write_bytes((data[:at] + bytes(4096) + data[at + 4096 :])[: len(data)])


def cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def of_another_step(path: Path, rng: random.Random) -> None:
    shutil.copy(path.parent.with_name("step-00000004") / path.name, path)


def permuted(path: Path, rng: random.Random) -> None:
    path = path.with_name("tokenizer.json")
    facts = json.loads(path.read_text())
    words = list(facts["model"]["vocab"])
    facts["model"]["vocab"] = dict(zip(words, rng.sample(range(len(words)), len(words)), strict=True))
    path.write_text(json.dumps(facts))


def gone(path: Path, rng: random.Random) -> None:
    path.unlink()


def test_a_damaged_checkpoint_is_named_and_the_run_ends_as_if_it_had_not_been(
    straight: tuple[Path, list[str]], recipe: str, folder: str, tmp_path: Path, torture_count: Callable[[int], int]
) -> None:
    whole, counts, kinds = straight[0], Counter[str](), Counter[str]()
    harms = [flip, zeros, cut, of_another_step, permuted, gone]
    for number in range(torture_count(1)):
        rng, out, said = random.Random(number), tmp_path / str(number) / "run", tmp_path / f"said-{number}"
        shutil.copytree(whole, out)
        newest = RunFolder(out).checkpoint(6)
        before = {path.name: path.read_bytes() for path in newest.iterdir()}
        harm = harms[number % len(harms)]
        harm(rng.choice(sorted(newest.iterdir())), rng)
        changed = before != {path.name: path.read_bytes() for path in newest.iterdir()}
        # Without its manifest a checkpoint is one of an older version: it is used, which is said.
        told = "is damaged" if manifest_of(newest).exists() else "was written without checksums"
        assert forked(partial(go, recipe, folder, out, resume=True), said) == 0, said.read_text()
        named = f"{newest} {told}" in said.read_text()
        assert named == changed, (harm.__name__, said.read_text())
        assert same(out, whole), harm.__name__
        counts[f"{told}, same end" if changed else "no change was drawn"] += 1
        kinds[harm.__name__] += 1
        shutil.rmtree(out.parent)
    report("damage to the newest checkpoint", counts)
    print(f"kinds: {dict(kinds)}")


def test_a_full_disk_is_a_sentence_and_loses_nothing(
    straight: tuple[Path, list[str]], recipe: str, folder: str, tmp_path: Path, torture_count: Callable[[int], int]
) -> None:
    """Files may be so many bytes long, a limit of the system's that is drawn; then they may be of any length again."""
    whole, counts = straight[0], Counter[str]()
    most = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    for number in range(torture_count(1)):
        rng, out, said = random.Random(number), tmp_path / str(number) / "run", tmp_path / f"said-{number}"
        limit = int(most * rng.random() ** 2)
        code = forked(partial(cramped, recipe, folder, out, limit), said)
        assert code == 2 and "can't be written (File too large" in said.read_text(), (limit, said.read_text())
        resume = RunFolder(out).newest() is not None
        assert forked(partial(go, recipe, folder, out, resume=resume), said) == 0, said.read_text()
        assert same(out, whole), limit
        counts["one sentence, then same end" + (" by --resume" if resume else " started again as it is")] += 1
        shutil.rmtree(out.parent)
    report("no room on the disk", counts)


def test_ranks_agree_on_the_step_they_stop_at_and_end_without_their_launcher(
    recipe: str, folder: str, tmp_path: Path, torture_count: Callable[[int], int]
) -> None:
    """Of two ranks one is asked by SIGUSR1, and both stop after one step; or their launcher is killed."""
    counts = Counter[str]()
    for number in range(max(1, torture_count(1) // 25)):
        for kind in ("asked", "orphaned"):
            out, said = tmp_path / f"{kind}-{number}", tmp_path / f"said-{kind}-{number}"
            work = partial(go, recipe, folder, out, resume=False, steps=100_000, save_every=100_000)
            launcher = context.Process(target=launch, args=(work, said), daemon=True)
            launcher.start()
            assert launcher.pid is not None
            ranks = trained(launcher.pid, out, said)
            asked = time.monotonic()
            if kind == "asked":
                os.kill(ranks[1], signal.SIGUSR1)
            else:
                os.kill(launcher.pid, signal.SIGKILL)
            while any(alive(rank) for rank in ranks):
                assert time.monotonic() - asked < 60, "a rank goes on"
                time.sleep(0.2)
            launcher.join(timeout=60)
            words = "".join(path.read_text() for path in said.parent.glob(f"{said.name}-*"))
            assert launcher.exitcode == (Stopped.code if kind == "asked" else -signal.SIGKILL), words
            newest = RunFolder(out).newest()
            assert newest is not None and not RunFolder(out).lock.exists()
            state = json.loads((newest / "state.json").read_text())
            assert state["read"] == state["images_seen"] == 4 * state["step"] > 0
            assert len(RunFolder(out).complete()) == 1
            counts[f"{kind}: both saved one step and ended in {time.monotonic() - asked:.0f} s"] += 1
    report("two ranks", counts)


def launch(work: Callable[[], Any], said: Path) -> None:
    """Be the launcher of two ranks as torchrun is: their parent, whose exit code is theirs if it is the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ["TORCHELASTIC_RUN_ID"] = "torture"
    ranks = []
    for rank in range(2):
        ranks.append(os.fork())
        if not ranks[-1]:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            run(work, said.with_name(f"{said.name}-{rank}"))
    codes = {os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks}
    os._exit(codes.pop() if len(codes) == 1 else 1)


def trained(launcher: int, out: Path, said: Path) -> list[int]:
    """The launcher's ranks, once they train."""
    end = time.monotonic() + 300
    while len(read_lines(out / "metrics.jsonl")) < 3:
        words = "".join(path.read_text() for path in said.parent.glob(f"{said.name}-*"))
        assert alive(launcher) and time.monotonic() < end, words
        time.sleep(0.2)
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def alive(process: int) -> bool:
    """Does it run, and is no zombie?"""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
