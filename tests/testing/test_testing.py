"""The tools that users test their pipelines with: faults on purpose, and the count of what is left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mploader import ArgumentError, Loader
from mploader._util.fault_points import POINTS, VARIABLE
from mploader.testing import Census, FlakySource, faults, workers_in_threads
from tests.transforms import digest, identity, noisy

SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]


def test_the_docstring_names_every_fault_point() -> None:
    import mploader.testing

    text = " ".join((mploader.testing.__doc__ or "").split())
    assert all(f'"{point}"' in text for point in POINTS)


def test_a_fault_strikes_inside_the_block_and_the_stream_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with (
        faults("mid decode:1:KILL", "slot half written:2:EXIT0"),
        Loader(range(20), identity, batch_size=5, num_workers=2) as loader,
    ):
        assert os.environ[VARIABLE] == "mid decode:1:KILL;slot half written:2:EXIT0"
        assert [batch.tolist() for batch in loader] == [list(range(at, at + 5)) for at in range(0, 20, 5)]
        deadline_s = time.monotonic() + 10
        while loader.statistics().restarts < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)  # the last batch may be there before the second worker is replaced
        assert loader.statistics().restarts >= 2
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("text", ["", "mid decode", "nowhere:1:KILL", "idle:1:BITE", "idle:one:KILL", "idle:1:KILL:x"])
def test_a_text_that_is_not_a_fault_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="MPLOADER_FAULT"), faults(text):
        pass


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_in_threads_give_the_same_batches_and_start_no_process(workers: int) -> None:
    options: dict[str, Any] = {"batch_size": 7, "shuffle": True, "num_workers": workers}
    with Loader(range(60), noisy, **options) as loader:
        expected = [digest(loader) for _ in range(2)]
    before = Census.take()
    with workers_in_threads():
        loader = Loader(range(60), noisy, **options)
    with loader:
        assert Census.take().processes == before.processes
        assert [digest(loader) for _ in range(2)] == expected
        assert len(set(loader.worker_pids)) == workers
        for pid in loader.worker_pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    del loader
    assert before.settle() == []


@pytest.mark.parametrize("kind", [int, "x", Loader])
def test_workers_of_another_kind_are_refused(kind: Any) -> None:
    with pytest.raises(ArgumentError, match="expected a subclass of ThreadWorker"), workers_in_threads(kind):
        pass


def test_a_transform_in_a_thread_can_be_stepped_through(run_script: Callable[..., Any]) -> None:
    text = """
import io, pdb, sys
from mploader import Loader
from mploader.testing import workers_in_threads

def transform(sample):
    doubled = 2 * sample
    pdb.Pdb(stdin=io.StringIO("p doubled\\nc\\n"), stdout=sys.stdout, nosigint=True).set_trace()
    return doubled

with workers_in_threads(), Loader([21], transform, batch_size=1, num_workers=1) as loader:
    print("batch", next(iter(loader)), file=sys.stderr)  # the debugger talks on, in the epoch that is made ahead
"""
    done = run_script(text)
    assert "(Pdb) 42\n" in done.stdout
    assert "batch [42]" in done.stderr


def test_a_flaky_source_fails_the_first_times() -> None:
    source = FlakySource(["a", "b"], failures=2, bad=[1])
    assert source[0] == "a"
    for _ in range(2):
        with pytest.raises(OSError, match="flaky source, item 1") as failure:
            source[1]
        assert failure.value.errno == errno.EIO
    assert source[1] == "b"
    assert len(source) == 2


def test_a_census_sees_what_is_new_and_settles_when_it_is_gone() -> None:
    before = Census.take()
    assert before.settle(0) == []
    child = subprocess.Popen(SLEEP, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    memory = os.memfd_create("mploader-test")
    goes_on = threading.Event()
    thread = threading.Thread(target=goes_on.wait, name="a thread of the test")
    thread.start()
    left = "\n".join(before.settle(0))
    assert f"process {child.pid} is left: {sys.executable}" in left
    assert f"process {os.getpid()} holds shared memory (inode {os.fstat(memory).st_ino})" in left
    assert f"descriptor {memory} is open: /memfd:mploader-test" in left
    assert "thread 'a thread of the test' runs" in left

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert f"process {child.pid} is a zombie" in before.settle(0)
    child.wait()
    child.stdout.close()
    os.close(memory)
    goes_on.set()
    thread.join()
    assert before.settle() == []


def test_a_token_finds_an_orphan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN_OF_THE_TEST", "17")
    token = "A_TOKEN_OF_THE_TEST=17"
    before = Census.take(token)
    parent = f"import subprocess\nchild = subprocess.Popen({SLEEP!r}, stdout=-3, stderr=-3)\nprint(child.pid)"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    orphan = int(done.stdout)
    try:
        assert any(f"process {orphan} is left" in line for line in before.settle(0))
        monkeypatch.delenv("A_TOKEN_OF_THE_TEST")
        assert not any(str(orphan) in line for line in Census.take("A_TOKEN_OF_THE_TEST=18").difference(before))
    finally:
        os.kill(orphan, 9)
    assert before.settle() == []
