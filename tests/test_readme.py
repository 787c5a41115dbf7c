"""The README is true: its commands, its examples, its names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mploader
from mploader.cli.main import main
from mploader.cli.synthetic_data import synthesize

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    demo, tests = (block.strip() for block in blocks("bash"))
    assert demo.endswith("mploader demo")
    steps = re.findall(r'^timed "(.*)"$', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert steps[0] == tests
    assert steps[1:] == [".venv/bin/ruff check .", ".venv/bin/mypy"]


def test_ci_ends_at_the_first_failure(tmp_path: Path) -> None:
    script = (ROOT / ".ci" / "run").read_text().partition('timed "')[0]
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text(f'{script}timed "true && (exit 3) && true"\ntimed "echo went on"\n')
    done = subprocess.run(["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "status 3 after 0 s: true && (exit 3) && true" in done.stdout
    assert "went on" not in done.stdout


def test_the_main_example_runs_as_it_stands(tmp_path: Path) -> None:
    main, prepare = blocks("python")
    synthesize(tmp_path / "photos", count=64, classes=2)
    (tmp_path / "main.py").write_text(f"{main}\n{prepare}\nprint(loader.statistics().batches)\n")
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Epoch 2/2" in done.stdout
    assert done.stdout.splitlines()[-1] == "2"


def test_every_name_exists() -> None:
    names = set(re.findall(r"`mploader\.([A-Za-z_.]+)", README))
    for name in names:
        value = mploader
        for part in name.split("."):
            value = getattr(value, part)
    for name in re.findall(r"`loader\.(\w+)", README):
        assert hasattr(mploader.Loader, name), name
    errors = {name for name in mploader.__all__ if name.endswith("Error")} - {"LoaderError"}
    assert errors == set(re.findall(r"`(\w+Error)`", README))
    assert "LoaderError" in str(names)


def test_every_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    assert set(re.findall(r"^\| `mploader (\w+)", README, re.MULTILINE)) == set(commands)


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
