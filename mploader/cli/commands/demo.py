"""``mploader demo``: trains a small classifier from a loader and from a plain pipeline, and compares the costs."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mploader.cli import signals
from mploader.cli.arguments import add_number

if TYPE_CHECKING:
    from mploader.cli.demo_training import EpochReport
    from mploader.engine.ipc.sample_report import BadSample
    from mploader.sources import Source

EPOCHS = 2


def add_parser(subparsers: Any) -> None:
    """Describes the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="train a small classifier, and show the costs of feeding it",
        description="Trains a small Keras classifier for two epochs from a loader's as_dataset(), then for one epoch "
        "from tf.data.Dataset.from_generator in a single process, and compares them. Leaves no files behind.",
    )
    parser.add_argument("--data", metavar="PATH", help="image folder, TFRecord or tar shards (default: synthetic data)")
    add_number(parser, "--samples", 2000, "pictures in an epoch, at most; without --data, pictures to make")
    add_number(parser, "--size", 160, "height and width of the pictures to train on", metavar="PIXELS")
    add_number(parser, "--batch-size", 32, "pictures in a batch")
    add_number(parser, "--workers", None, "worker processes (default: one per CPU)")
    add_number(parser, "--seed", 0, "seed of the data, the order and the crops", low=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Makes or opens the data, trains, and prints the table."""
    from mploader.cli.console import console
    from mploader.cli.demo_samples import count_classes
    from mploader.sources import open_source

    with temporary_folder() as folder:
        path = args.data
        if path is None:
            path = os.path.join(folder, "pictures")
            _make_pictures(path, args.samples, args.seed)
        source = open_source(path, save_index=False)
        classes = count_classes(source)
        console.print(f"data: {source!r}", soft_wrap=True, markup=False)
        reports, bad = _train(args, source, classes, keras_home=os.path.join(folder, "keras"))
    _print_results(reports, classes, bad)
    return 0


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder that is removed completely at the end: signals that arrive meanwhile are handled afterwards."""
    folder = tempfile.TemporaryDirectory(prefix="mploader-demo-")
    try:
        yield folder.name
    finally:
        with signals.held_back():
            folder.cleanup()


def _make_pictures(folder: str, count: int, seed: int) -> None:
    from mploader.cli.console import progress_bar
    from mploader.cli.synthetic_data import synthesize

    with progress_bar("making pictures", count) as advance:
        synthesize(folder, count=count, classes=min(10, count), seed=seed, progress=lambda done, _: advance(done))


def _train(
    args: argparse.Namespace, source: Source, classes: int, keras_home: str
) -> tuple[list[EpochReport], list[BadSample]]:
    """Trains two epochs from a loader and one from a plain pipeline; returns their reports and the bad samples."""
    from mploader.cli.console import console, count_text, progress_bar
    from mploader.cli.demo_samples import Augment
    from mploader.loader.loader import Loader
    from mploader.sampling.plan import Plan

    batch_size = min(args.batch_size, args.samples, len(source))
    steps = min(args.samples, len(source)) // batch_size
    augment = Augment(args.size, classes)
    plan = Plan(len(source), batch_size, args.seed, shuffle=True, drop_remainder=True)

    def train(name: str, dataset: Any, loader: Loader | None = None) -> EpochReport:
        with progress_bar(name, steps) as advance:
            report: EpochReport = training.train_epoch(model, dataset, steps, advance, loader)
        console.print(f"{name}: {count_text(report.images, 'picture')} in {report.seconds:.1f} s", soft_wrap=True)
        return report

    # Before TensorFlow, which takes seconds to import, so that data that cannot be read is reported at once.
    with console.status("starting workers"):
        opened = Loader(
            source,
            augment,
            batch_size=batch_size,
            shuffle=True,
            seed=args.seed,
            drop_remainder=True,
            num_workers=args.workers,
            on_bad_sample="replace",
        )
    with opened as loader:
        with console.status("starting TensorFlow"), _stderr_kept_back():
            training = _import_training(keras_home)
            model = training.classifier(args.size, classes, batch_size)
        dataset = loader.as_dataset().take(steps)
        reports = [train(f"epoch {epoch + 1}", dataset, loader) for epoch in range(EPOCHS)]
        bad = loader.bad_samples()
    # The same samples in the same order as in the epoch before, so the pictures cost the same to read.
    plain = training.plain_dataset(source, plan, EPOCHS - 1, steps, augment)
    reports.append(train("plain from_generator, one process", plain))
    return reports, bad


def _import_training(keras_home: str) -> ModuleType:
    """Imports TensorFlow and Keras with few messages, and writes no configuration file to the user's home."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["KERAS_HOME"] = keras_home
    return importlib.import_module("mploader.cli.demo_training")


@contextlib.contextmanager
def _stderr_kept_back() -> Iterator[None]:
    """Shows what libraries print to the standard error only after an error. It captures the output of C++ code, too."""
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:
            kept.seek(0)
            os.write(stderr, kept.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _print_results(reports: list[EpochReport], classes: int, bad: list[BadSample]) -> None:
    from rich.table import Table

    from mploader.cli.console import console, count_text

    table = Table()
    for name in ("costs of an epoch", *(f"epoch {number + 1}" for number in range(EPOCHS)), "plain"):
        table.add_column(name, justify="right" if table.columns else "left")
    for row in _rows(reports, classes):
        table.add_row(*row)
    console.print()
    console.print(table)
    different = {sample.index: sample for sample in bad}  # each is bad in every epoch
    for sample in list(different.values())[:10]:
        console.print(f"replaced: {sample.where}: {sample.error}", soft_wrap=True, markup=False)
    if bad:
        console.print(f"replaced because they are bad: {count_text(len(different), 'sample')}")
    if reports[-1].images:
        factor = reports[-2].images_per_s / reports[-1].images_per_s
        console.print(f"Epoch {EPOCHS} was {factor:.1f} times as fast as the plain pipeline with the same pictures.")


def _rows(reports: list[EpochReport], classes: int) -> Iterator[list[str]]:
    """The rows of the table: a title, and one cell for each epoch."""
    yield ["images/s", *(f"{report.images_per_s:,.0f}" for report in reports)]
    yield ["training waited for data", *(f"{report.waited_s / report.seconds:.0%}" for report in reports)]
    yield ["CPU of the trainer, cores", *(f"{report.trainer_cpu_s / report.seconds:.2f}" for report in reports)]
    uses = [(report.use, report.seconds) for report in reports]
    yield ["CPU of the workers, cores", *(f"{use.workers_cpu_s / s:.2f}" if use else "-" for use, s in uses)]
    yield ["slots borrowed, at most", *(f"{use.most_borrowed} of {use.slots}" if use else "-" for use, _ in uses)]
    yield ["batches copied", *(f"{use.batches_copied} of {use.batches}" if use else "-" for use, _ in uses)]
    yield ["workers restarted", *(str(use.restarts) if use else "-" for use, _ in uses)]
    yield [f"accuracy (chance: {1 / classes:.1%})", *(f"{report.accuracy:.0%}" for report in reports)]
