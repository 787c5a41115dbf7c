"""NumPy batches without TensorFlow: the mean and the deviation of each colour over an image folder.

    python examples/numpy_batches.py [FOLDER]

Without a folder, synthetic pictures are made in a temporary one.
"""

import sys
import tempfile

import numpy as np

import mploader
from mploader.cli.synthetic_data import synthesize
from mploader.images import Resize

with tempfile.TemporaryDirectory() as temporary:
    if len(sys.argv) == 1:
        synthesize(temporary, count=300)
    source = mploader.sources.ImageFolder(sys.argv[1] if len(sys.argv) > 1 else temporary)

    with mploader.Loader(source, mploader.apply_to(0, Resize(64, 64)), batch_size=50) as loader:
        total, squares, images = np.zeros(3), np.zeros(3), 0
        for pictures, _labels in loader:  # uint8 (batch, 64, 64, 3), int64 (batch,)
            colours = pictures.reshape(-1, 3) / 255
            total += colours.mean(axis=0) * len(pictures)
            squares += (colours**2).mean(axis=0) * len(pictures)
            images += len(pictures)

    mean = total / images
    print(f"{images} images, mean {mean.round(3)}, standard deviation {np.sqrt(squares / images - mean**2).round(3)}")

assert "tensorflow" not in sys.modules
