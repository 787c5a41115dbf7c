"""The datasets of :mod:`tests.pydatasets` as real ``keras.utils.PyDataset``: a worker that reads them imports Keras."""

from __future__ import annotations

import keras

from tests import pydatasets


class Plain(pydatasets.Plain, keras.utils.PyDataset):
    """See :class:`tests.pydatasets.Plain`."""


class Single(pydatasets.Single, keras.utils.PyDataset):
    """See :class:`tests.pydatasets.Single`."""


class AsDict(pydatasets.AsDict, keras.utils.PyDataset):
    """See :class:`tests.pydatasets.AsDict`."""


class Reshuffling(pydatasets.Reshuffling, keras.utils.PyDataset):
    """See :class:`tests.pydatasets.Reshuffling`."""
