import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch._utils import ExceptionWrapper  # what a worker's error comes back in

from common.errors import UserError
from common.training.loader import batches_of


def broken(in_worker: bool) -> Iterator[int]:
    yield 1
    try:
        try:
            raise OSError("gone")
        except OSError as error:
            raise UserError("the picture x.png cannot be used now:\ngone") from error
    except UserError:
        if not in_worker:
            raise
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    wrapped.reraise()


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_users_error_in_a_worker_keeps_its_own_words(in_worker: bool) -> None:
    batches = batches_of(broken(in_worker))
    assert next(batches) == 1
    with pytest.raises(UserError, match=f"^{re.escape('the picture x.png cannot be used now:')}\ngone$") as raised:
        next(batches)
    assert raised.value.__context__ is None  # nothing keeps the loader alive


_UNFORESEEN = """
from torch.utils.data import DataLoader
from common.training.loader import outlive_signals

batches = iter(DataLoader(list(range(99)), num_workers=1, worker_init_fn=outlive_signals))
next(batches)
raise RuntimeError("unforeseen")
"""


@pytest.mark.slow
def test_an_unforeseen_error_ends_the_process_though_workers_ignore_sigterm() -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", _UNFORESEEN], cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: unforeseen")
