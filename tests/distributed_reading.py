"""Reads loaders under a strategy of TensorFlow and prints what each replica got; run by tests/test_hosts.py.

Usage: python -m tests.distributed_reading mirrored                       two replicas in this process
       TF_CONFIG=... python -m tests.distributed_reading workers          one of several processes, a replica each
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

warnings.filterwarnings("error", message=".*(shard|rebatch|ran out of data).*")

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from mploader.tfdata import ResumeCallback, distribute  # noqa: E402
from tests.resume_data import make_loader  # noqa: E402


def received(strategy: Any, dataset: Any) -> list[list[list[int]]]:
    """The samples of each local replica, step by step."""
    return [
        [tf.cast(tf.reshape(x, [-1]), tf.int64).numpy().tolist() for x in strategy.experimental_local_results(step[0])]
        for step in dataset
    ]


def own_loaders(strategy: Any, **options: Any) -> Any:
    def make(context: tf.distribute.InputContext) -> tf.data.Dataset:
        shard = (context.input_pipeline_id, context.num_input_pipelines)
        batch_size = context.get_per_replica_batch_size(4)
        return make_loader(batch_size=batch_size, shard=shard, **options).as_dataset()

    return strategy.distribute_datasets_from_function(make)


def fit(strategy: Any, shard: tuple[int, int]) -> dict[str, Any]:
    with strategy.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    loader = make_loader(shard=shard)
    history = model.fit(
        loader.as_dataset(), epochs=2, callbacks=[ResumeCallback(loader)], verbose=0, shuffle=False
    )
    return {"epochs": len(history.history["loss"]), "place": [loader.position.epoch, loader.position.batch]}


def main() -> None:
    if sys.argv[1] == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy: Any = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        shard = (0, 1)
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        cluster = json.loads(os.environ["TF_CONFIG"])
        shard = (cluster["task"]["index"], len(cluster["cluster"]["worker"]))
    result: dict[str, Any] = {
        "experimental_distribute_dataset": received(
            strategy, strategy.experimental_distribute_dataset(make_loader(shard=shard).as_dataset())
        ),
        "distribute_datasets_from_function": received(strategy, own_loaders(strategy)),
        "distribute": received(
            strategy,
            distribute(
                lambda host: make_loader(batch_size=host.get_per_replica_batch_size(4), shard=host), strategy
            ),
        ),
    }
    if sys.argv[1] == "mirrored":
        result["fit"] = fit(strategy, shard)
    print("RESULT", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
