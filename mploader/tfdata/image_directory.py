"""What ``image_dataset_from_directory`` needs of TensorFlow and Keras."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def default_data_format() -> str:
    """Returns what Keras is configured to, "channels_last" or "channels_first"."""
    import keras  # type: ignore[import-not-found, unused-ignore]  # slow, and only needed for the default

    return str(keras.config.image_data_format())


def with_float_images(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset of (images, ...) or of images with the images as float32. Cast in the graph, as Keras does."""

    def to_float(image: Any, *label: Any) -> Any:
        image = tf.cast(image, tf.float32)
        return (image, *label) if label else image

    # One call at a time: more would hold slots, and a cast is a small part of the time.
    return dataset.map(to_float, num_parallel_calls=1, deterministic=True).prefetch(1)
