"""Trains a Keras classifier from TFRecord shards, parsed and decoded in worker processes without TensorFlow.

    python examples/train_tfrecord.py [PATTERN]

Without a pattern, shards of synthetic pictures are made in a temporary folder.
"""

import sys
import tempfile

import keras

import mploader
from mploader.cli.synthetic_data import synthesize
from mploader.images import RandomResizedCrop

crop = RandomResizedCrop(128, 128, scale=(0.3, 1.0))


def prepare(record, rng):
    """Makes an element from a record. It may be any function; if all its random numbers come from rng, runs are equal.

    Workers get it without running this script again, so `if __name__ == "__main__"` is not needed.
    """
    return crop(record["image/encoded"], rng), record["image/class/label"][0]


with tempfile.TemporaryDirectory() as temporary:
    if len(sys.argv) == 1:
        synthesize(temporary, format="tfrecord", count=1000)
    source = mploader.sources.TFRecordShards(sys.argv[1] if len(sys.argv) > 1 else f"{temporary}/*.tfrecord")
    print(source)

    loader = mploader.Loader(source, prepare, batch_size=32, shuffle=True, drop_remainder=True)
    print(loader.element_spec)

    model = keras.Sequential([
        keras.Input((128, 128, 3), dtype="uint8"),
        keras.layers.Rescaling(1 / 127.5, -1),
        keras.layers.Conv2D(64, 8, strides=8, activation="relu"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.GlobalMaxPooling2D(),
        keras.layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(loader.as_dataset(), epochs=2, shuffle=False, verbose=2)
