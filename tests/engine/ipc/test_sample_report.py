"""What crosses from a worker when something is wrong: bounded text, whatever the exception is."""

from __future__ import annotations

import dataclasses
import errno
import json

import pytest

from mploader._util.environment_errors import is_environment
from mploader._util.location import Location
from mploader.engine.ipc import sample_report
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.ipc.worker_status import TEXT_BYTES
from mploader.errors import LoaderError, ResourceError, SampleError, SpecError, StallError


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("error", [ValueError("x" * 10**7), UnprintableError(), KeyError("\ud800 \0 ä"), Exception()])
def test_any_exception_becomes_a_small_report(error: Exception) -> None:
    report = sample_report.report_exception(3, "file", raised(error))
    data = sample_report.encode([report], TEXT_BYTES)
    assert len(data) <= TEXT_BYTES
    (found,) = sample_report.decode(data)
    assert (found.index, found.where, found.kind) == (3, "file", type(error).__name__)
    assert isinstance(found.to_error("worker 1"), SampleError)


def test_causes_are_reported() -> None:
    try:
        try:
            raise OSError("first")
        except OSError as error:
            raise ValueError("second") from error
    except ValueError as error:
        text = sample_report.traceback_of(error)
    assert text.index("OSError: first") < text.index("led to") < text.index("ValueError: second")


@pytest.mark.parametrize("count", [1, 10, 64, 5000])
def test_many_reports_lose_their_tracebacks_and_nothing_else(count: int) -> None:
    report = sample_report.report_exception(0, "w" * 5000, raised(ValueError("e" * 5000)))
    rows = [dataclasses.replace(report, index=index) for index in range(count)]
    data = sample_report.encode(rows, TEXT_BYTES)
    assert len(data) <= max(TEXT_BYTES, 4_300 * count)
    found = sample_report.decode(data)
    assert [row.index for row in found] == list(range(count))
    assert {(row.where, row.kind, row.error) for row in found} == {(report.where, report.kind, report.error)}


def test_the_file_the_byte_and_the_offset_travel() -> None:
    place = Location("a.tar, record 3", "a.tar", 512)
    report = dataclasses.replace(sample_report.report_exception(7, place, ValueError("rotten")), offset=2)
    assert (report.file, report.byte) == ("a.tar", 512)
    assert sample_report.decode(sample_report.encode([report], 10_000)) == [report]
    bare = sample_report.report_exception(7, "somewhere", ValueError("rotten"))
    assert (bare.file, bare.byte, bare.offset) == (None, None, None)
    assert sample_report.decode(sample_report.encode([bare], 10_000)) == [bare]
    for name, value in (("file", 3), ("byte", "x"), ("offset", True), ("index", "7"), ("kind", None)):
        with pytest.raises(ValueError, match="not a report"):
            sample_report.decode(json.dumps([{**dataclasses.asdict(report), name: value}]).encode())


@pytest.mark.parametrize(
    ("group", "kind"),
    [("content", SampleError), ("crash", SampleError), ("generator", SampleError), ("spec", SpecError),
     ("environment", ResourceError), ("stall", StallError)],
)  # fmt: skip
def test_an_error_has_the_facts_as_attributes(group: str, kind: type[LoaderError]) -> None:
    report = SampleReport(7, "a.tar, record 3", "ValueError", "rotten", "its traceback", group, "a.tar", 512, 2)
    error = report.to_error("worker 3", "Do this.")
    assert type(error) is kind
    facts = (error.index, error.file, error.byte, error.kind, error.traceback, error.worker)
    assert facts == (7, "a.tar", 512, "ValueError", "its traceback", "worker 3")
    assert str(error).startswith("sample 7 (a.tar, record 3) failed in worker 3: ValueError: rotten")
    assert ("Do this." in str(error)) == (group in ("content", "crash"))
    again = error.again()
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def test_one_report_always_fits() -> None:
    widest = "\N{GRINNING FACE}" * 20_000
    kind = type(widest[:1], (ValueError,), {})
    kind.__name__ = "K" * 20_000
    report = sample_report.report_exception(2**62, widest, raised(kind(widest)))
    worst = dataclasses.replace(report, kind=widest[: len(report.kind)], traceback=widest[:12_000])
    assert len(sample_report.encode([worst], TEXT_BYTES)) <= TEXT_BYTES


def test_faults_of_the_machine_differ_from_faults_of_the_data() -> None:
    for error in (
        OSError(errno.EIO, "x"),
        OSError(errno.ENOSPC, "x"),
        MemoryError(),
        TimeoutError(),
        OSError(errno.EMFILE, "x"),
        OSError(errno.EHOSTDOWN, "x"),
        OSError(errno.ENODEV, "x"),
        OSError(errno.ENXIO, "x"),
    ):
        assert is_environment(error)
        assert isinstance(sample_report.report_exception(0, "", error).to_error("w"), ResourceError)
    for error in (FileNotFoundError(errno.ENOENT, "x"), OSError("no image"), ValueError(), StopIteration()):
        assert not is_environment(error)
    assert isinstance(sample_report.report_exception(0, "", SpecError("x")).to_error("w"), SpecError)
