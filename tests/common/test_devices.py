"""`--device`: what it names must be there."""

import pytest
import torch

from common.devices import require_compiler, usable_device
from common.errors import UserError


def test_without_a_name_it_is_a_gpu_where_there_is_one() -> None:
    assert usable_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toaster", "--device=toaster is no device; give cuda, cuda:N or cpu"),
        ("cuda:99", "--device=cuda:99 cannot be used on this machine: .*; --device=cpu always can"),
        ("meta", "--device=meta cannot be used on this machine"),
    ],
)
def test_a_device_that_is_not_there_is_a_users_error(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        usable_device(name)


def test_compiling_without_a_compiler_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "CC" if torch.cuda.is_available() else "CXX"
    monkeypatch.setenv(variable, "no-such-compiler")
    with pytest.raises(UserError, match=r"train.compile=true needs the compiler no-such-compiler, .*apt-get install"):
        require_compiler()
    monkeypatch.setenv(variable, "true")
    require_compiler()
