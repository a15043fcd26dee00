import pytest
import torch

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.precision import resolve_precision


def test_auto_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, has, expected in (
        ("AMD EPYC", {"avx512_bf16": True}, "bf16-mixed"),
        ("Intel Xeon", {"avx512_bf16": True, "amx_bf16": True}, "bf16-mixed"),
        ("Intel Xeon", {"avx512_bf16": True, "amx_bf16": False}, "32-true"),
        ("AMD EPYC", {"avx512_bf16": False}, "32-true"),
        ("Neoverse", {}, "32-true"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name, has=has: {"cpu_name": name, **has})
        assert resolve_precision("auto") == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bf16, expected in ((True, "bf16-mixed"), (False, "16-mixed")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_bf16=has_bf16, **_: has_bf16)
        assert resolve_precision("auto") == expected
    assert resolve_precision("32-true") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match='precision = "16-mixed": needs a GPU'):
        resolve_precision("16-mixed")
