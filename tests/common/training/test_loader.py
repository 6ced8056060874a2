import re
from pathlib import Path

import pytest
from torch import Tensor

from common.errors import UserError
from tests.common.training import toy
from tests.common.training.toy import train_toy


class Broken(toy.ToySamples):
    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        try:
            raise OSError("gone")
        except OSError as error:
            raise UserError("the picture x.png cannot be used now: gone") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_error_in_a_worker_keeps_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(toy, "ToySamples", Broken)
    with pytest.raises(UserError, match=f"^{re.escape('the picture x.png cannot be used now: gone')}$"):
        train_toy(tmp_path, num_workers=workers)
