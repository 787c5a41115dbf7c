"""An iteration that Ctrl-C cuts off at the worst moment goes on where it was."""

from __future__ import annotations

from typing import Any

import pytest

from mploader import Loader
from mploader.run import Run


@pytest.mark.parametrize("moment", ["consume", "settle"])
def test_an_interrupt_between_taking_and_returning_a_batch_loses_none_silently(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    real = getattr(Run, moment)

    def interrupted(run: Run, *arguments: Any) -> None:
        monkeypatch.setattr(Run, moment, real)
        raise KeyboardInterrupt

    with Loader(range(6), batch_size=1, num_workers=1) as loader:
        batches = iter(loader)
        assert next(batches).tolist() == [0]
        monkeypatch.setattr(Run, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(batches)
        if moment == "consume":
            assert [int(batch[0]) for batch in batches] == [1, 2, 3, 4, 5]
            assert loader.state_dict()["epoch"] == 1
        else:  # the batch is gone, and the error says so at every call
            for _ in range(2):
                with pytest.raises(Exception, match="was lost on its way"):
                    next(batches)
