"""Trains a Keras classifier from an image folder, a class per sub-folder.

    python examples/train_image_folder.py [FOLDER]

Without a folder, synthetic pictures are made in a temporary one.
"""

import sys
import tempfile

import keras

import mploader
from mploader.cli.synthetic_data import synthesize
from mploader.images import Compose, RandomFlip, RandomResizedCrop

with tempfile.TemporaryDirectory() as temporary:
    if len(sys.argv) == 1:
        synthesize(temporary, count=1000)
    source = mploader.sources.ImageFolder(sys.argv[1] if len(sys.argv) > 1 else temporary)
    print(source)

    augment = Compose([RandomResizedCrop(160, 160, scale=(0.3, 1.0)), RandomFlip()])
    loader = mploader.Loader(source, mploader.apply_to(0, augment), batch_size=32, shuffle=True)

    model = keras.Sequential([
        keras.Input((160, 160, 3), dtype="uint8"),
        keras.layers.Rescaling(1 / 127.5, -1),
        keras.layers.Conv2D(16, 8, strides=8, activation="relu"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.Conv2D(64, 3, strides=2, activation="relu"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.GlobalMaxPooling2D(),
        keras.layers.Dense(len(source.class_names), activation="softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

    # Each epoch of fit() is the next epoch of the loader, in another order and with other crops.
    model.fit(loader.as_dataset(), epochs=2, shuffle=False, verbose=2)
    print(loader.statistics())
