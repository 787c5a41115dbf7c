"""The layers of the package and which module may import which, checked by reading the imports of every module.

Imports inside functions and under ``TYPE_CHECKING`` count as well.
"""

from __future__ import annotations

import ast
import graphlib
import pathlib
import re
from collections.abc import Iterator

import mploader
from mploader.engine.scheduler.states import SLOT_MOVES, TASK_MOVES

PACKAGE = pathlib.Path(mploader.__file__).parent

# A module belongs to the layer with the longest prefix of its name. It may import modules of layers above it in this
# list, and of its own layer.
LAYERS: list[list[str]] = [
    ["errors", "_util"],
    ["sampling", "images", "batching"],
    ["sources", "monitoring"],
    ["engine.ipc", "engine.scheduler"],
    ["engine.worker"],
    ["engine.supervisor"],
    ["loader"],
    ["tfdata"],
    ["loader.loader", "loader.image_directory", "loader.pydataset"],
    ["cli", "testing", "__main__"],
]
PREFIXES = {prefix: number for number, layer in enumerate(LAYERS) for prefix in layer}


def modules() -> dict[str, pathlib.Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:  # the package itself hands out the public names of all layers
            found[name] = path
    return found


MODULES = modules()


def imports(path: pathlib.Path) -> Iterator[str]:
    """The modules of this package that a file imports, wherever in the file that is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, inner = name.partition(".")
            is_extension = (PACKAGE / f"{inner.replace('.', '/')}.pyi").exists()  # written in C, imports nothing
            if first == "mploader" and inner and not is_extension:
                yield inner if inner in MODULES else inner.rpartition(".")[0]


def imports_from_elsewhere(path: pathlib.Path) -> set[str]:
    """The first names of what a file imports from other packages."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names


def layer(name: str) -> int:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in PREFIXES:
            return PREFIXES[".".join(parts[:end])]
    raise AssertionError(f"{name} belongs to no layer: add it to LAYERS, where its neighbours are")


def test_a_module_imports_only_its_own_layer_and_those_above() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in imports(path)
        if other and layer(other) > layer(name)
    ]
    assert not wrong


def test_no_module_imports_itself_by_a_detour() -> None:
    # A package's __init__ gathers names of its modules, and they are imported with it: no module of a package imports
    # its own package.
    graph = {name: {other for other in imports(path) if other} - {name} for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_each_of_these_is_imported_in_one_place_only() -> None:
    places = {
        "tensorflow": ["tfdata", "cli.demo_training"],
        "keras": ["tfdata", "cli.demo_training"],
        "fsspec": ["sources"],
    }
    wrong = [
        f"{name} imports {package}"
        for name, path in MODULES.items()
        for package in imports_from_elsewhere(path) & set(places)
        if not any(name == place or name.startswith(f"{place}.") for place in places[package])
    ]
    assert not wrong


def test_each_of_these_is_called_in_one_place_only() -> None:
    places = {
        "os.memfd_create": ["_util.shared_memory"],
        "mmap.mmap": ["_util.shared_memory"],
        "subprocess.Popen": ["cli.decoder_limit", "engine.supervisor.worker_process"],
    }
    found = {
        call: sorted(
            name
            for name, path in MODULES.items()
            if any(isinstance(node, ast.Call) and ast.unparse(node.func) == call
                   for node in ast.walk(ast.parse(path.read_text())))
        )
        for call in places
    }  # fmt: skip
    assert found == places


def test_nothing_imports_the_testing_tools() -> None:
    importers = {name for name, path in MODULES.items() for other in imports(path) if other.startswith("testing")}
    assert all(name.startswith("testing") for name in importers)


def test_the_scheduler_knows_no_input_no_thread_and_no_clock() -> None:
    for name, path in MODULES.items():
        if name.startswith("engine.scheduler"):
            assert imports_from_elsewhere(path) <= {
                "__future__", "collections", "dataclasses", "enum", "heapq", "math", "mploader", "signal", "typing"
            }, name  # fmt: skip


def test_the_top_of_the_package_shows_the_way_of_the_data() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")} - {"py.typed"}
    assert len(entries) <= 12


PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text()


def test_the_page_draws_the_states_from_the_table() -> None:
    rows = re.findall(r"^\| ([A-Z]+) \| (\w+) \| ([A-Z]+) \|$", PAGE, re.MULTILINE)
    moves = [*SLOT_MOVES.items(), *TASK_MOVES.items()]
    assert rows == [(before.name, event, after.name) for (before, event), after in moves]


def test_the_page_names_files_and_functions_that_exist() -> None:
    paths = set(re.findall(r"`([a-z_/]+\.py)`", PAGE))
    assert paths
    missing = [path for path in paths if not (PACKAGE / path).exists() and not (PACKAGE.parent / path).exists()]
    assert not missing
    defined = {
        node.name
        for path in [*MODULES.values(), *(PACKAGE.parent / path for path in paths if path.startswith("tests/"))]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    named = set(re.findall(r"`([A-Z]\w+)(?:\.\w+)*`", PAGE)) | set(re.findall(r"`[A-Z]\w+\.(\w+)`", PAGE))
    attributes = {"progress", "released"}
    constants = {name for name in named if name.isupper()} | {"True", "None"}
    assert named - constants - attributes - defined == set()
