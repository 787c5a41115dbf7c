"""The rooms of the package and who may know whom, checked by reading the imports."""

from __future__ import annotations

import ast
import pathlib

import mploader

PACKAGE = pathlib.Path(mploader.__file__).parent

# A module may import what stands above it. A package stands for its modules, which may import each other.
ROWS = [
    ["errors", "faultpoints", "checks", "platform_check", "interpreter", "orphan", "cpuclock"],
    ["permutation", "spec", "order", "proportions", "plan"],
    ["resources", "reports", "bad_limit"],
    ["sources", "synth_picture", "synth"],
    ["images", "keras_images", "whole_batches"],
    ["batch", "shapes", "buckets", "layout"],
    ["arena", "messages"],
    ["pickling", "payload"],
    ["position", "bad_record"],
    ["stages", "streams", "worker"],
    ["process", "states", "schedule", "blame"],
    ["consumers", "statistics", "explain", "trace"],
    ["ledger", "crew", "intake", "losses", "supervisor", "pool"],
    ["run", "loader", "generators"],
    ["tfdata"],
    ["pictures", "bench", "show", "verify", "testing"],
    ["commands", "cli", "__main__"],
]
ORDER = [room for row in ROWS for room in row]

# What the table of the design calls the one way round: the loader hands a dataset out, and only when asked.
LAZY = {("loader", "tfdata")}


def modules() -> dict[str, pathlib.Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    }


def imported(path: pathlib.Path) -> set[tuple[str, bool]]:
    """The rooms that a module imports from this package, and whether it does so inside a function."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body} | {
        id(inner) for node in tree.body if isinstance(node, ast.If) for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mploader":
            parts = node.module.split(".")[1:]
            names = [parts[0]] if parts else [alias.name for alias in node.names]
            found |= {(name, id(node) not in top) for name in names}
        elif isinstance(node, ast.Import):
            found |= {
                (alias.name.split(".")[1], id(node) not in top)
                for alias in node.names
                if alias.name.startswith("mploader.")
            }
    return found


def type_checking_only(path: pathlib.Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {
        node.module.split(".")[1]
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mploader.")
    }


def test_every_module_has_its_room() -> None:
    rooms = {name.split(".")[0] for name in modules()}
    assert rooms - set(ORDER) == set(), "a new module belongs into ORDER, where its neighbours are"


def test_a_module_imports_only_what_stands_above_it() -> None:
    wrong = []
    for name, path in modules().items():
        room = name.split(".")[0]
        for_types = type_checking_only(path)
        for other, is_lazy in imported(path):
            if other == room or (is_lazy and (room, other) in LAZY) or other in for_types:
                continue
            if ORDER.index(other) >= ORDER.index(room):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_tensorflow_is_imported_in_one_room_only() -> None:
    importers = set()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            if any(top.split(".")[0] in ("tensorflow", "keras") for top in names):
                importers.add(name.split(".")[0])
    # The demo is a program that trains a model. The loader names TensorFlow's type for those who check types.
    assert importers == {"tfdata", "commands", "loader"}
    assert "tensorflow" not in (PACKAGE / "loader.py").read_text().split("if TYPE_CHECKING")[0]


def test_nothing_imports_the_testing_tools() -> None:
    for name, path in modules().items():
        if not name.startswith("testing"):
            assert "testing" not in {other for other, _ in imported(path)}, name


def test_the_schedule_knows_no_input_no_thread_and_no_clock() -> None:
    tree = ast.parse((PACKAGE / "schedule.py").read_text())
    names = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= {"__future__", "heapq", "math", "mploader.states"}
