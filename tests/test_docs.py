"""Runs every example of the documentation, and compares what it prints with what the page says that it prints."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import shlex
from typing import Any

import pytest

from mploader.cli.main import main
from mploader.cli.synthetic_data import synthesize

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What docs/README.md says is there."""
    folder = tmp_path_factory.mktemp("docs")
    synthesize(folder / "photos", count=24, classes=4)
    for format in ("tfrecord", "tar"):
        synthesize(folder / f"{format}s", format=format, count=24, classes=4, shard_size=10)
    return folder


def run(code: str, page: pathlib.Path, line: int, names: dict[str, Any]) -> list[str]:
    """Runs one example and returns the lines that it prints."""
    output = io.StringIO()
    # The line numbers of tracebacks are those of the page.
    program = compile("\n" * line + code, str(page), "exec")
    with contextlib.redirect_stdout(output):
        exec(program, names)
    return output.getvalue().splitlines()


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_examples_do_what_the_page_says(
    page: pathlib.Path, data: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    names: dict[str, Any] = {"__name__": f"docs_{page.stem.replace('-', '_')}"}
    text = page.read_text()
    for block in BLOCK.finditer(text):
        language, code = block.groups()
        if language == "python":
            line = text.count("\n", 0, block.start(2))
            assert run(code, page, line, names) == PRINTED.findall(code)
        elif language == "bash":
            for command in code.strip().splitlines():
                program, *arguments = shlex.split(command)
                assert program == "mploader"
                assert main(arguments) == 0, command


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert os.path.exists(page.parent / target), target


def test_every_page_is_listed() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert listed == {page.name for page in PAGES} - {"README.md"}
