"""The end of the program, while TensorFlow still reads ahead from a loader.

Once the interpreter has begun to end, a thread of TensorFlow that enters Python is ended by CPython, wherever it is
(``PyThread_exit_thread`` in ``take_gil``). The iterator that it reads for goes with the last variables of the program
and then waits for that thread, so the program hangs. So an exit handler ends all iterators before.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import threading
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops.iterator_ops import OwnedIterator
from tensorflow.python.data.ops.multi_device_iterator_ops import OwnedMultiDeviceIterator

from mploader.loader import open_pools

GRACE_S = 1.0
"""How long a batch that is being waited for may take at the end of the program."""
LIMIT_S = 5.0
"""How long threads of TensorFlow may be elsewhere in Python, as in a generator of the user's."""

_ending = threading.Event()


def install() -> None:
    """Makes the program end all iterators of TensorFlow when it ends."""
    # Waits for the end from now on: an exit handler may start no thread.
    thread = threading.Thread(target=_end_iterators, name="mploader-ending", daemon=True)
    thread.start()
    # Exit handlers run in reverse order of registration: this one before those of the loaders and of TensorFlow.
    atexit.register(_end, thread)
    # The threads that an iterator would wait for are not in a child.
    os.register_at_fork(after_in_child=lambda: atexit.unregister(_end))


def _end(thread: threading.Thread) -> None:
    _ending.set()
    thread.join(GRACE_S)
    open_pools.close_all()  # a consumer that still waits for a batch gets an error
    thread.join(LIMIT_S)


def _end_iterators() -> None:
    _ending.wait()
    gc.unfreeze()  # so that the next line sees all
    for thing in gc.get_objects():
        if type(thing) in (OwnedIterator, OwnedMultiDeviceIterator):
            with contextlib.suppress(Exception):  # it is left as it is, on a device that is gone, say
                _end_iterator(thing)


def _end_iterator(iterator: Any) -> None:
    """Gives an iterator nothing to read. TensorFlow waits here for the threads that read ahead for it.

    To drop the resource of the iterator is not enough: the traceback of an error may hold that too.
    """
    resource = iterator._type_spec._to_components(iterator)[0]
    if tf.is_symbolic_tensor(resource):
        return  # part of a graph
    nothing = tf.data.Dataset.from_generator(tuple, output_signature=iterator.element_spec)._variant_tensor
    if type(iterator) is OwnedIterator:
        tf.raw_ops.MakeIterator(dataset=nothing, iterator=resource)
    else:
        tf.raw_ops.MultiDeviceIteratorInit(dataset=nothing, multi_device_iterator=resource, max_buffer_size=1)
