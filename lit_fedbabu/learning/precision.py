"""The precision that training has on this machine."""

import torch

from lit_fedbabu.ground.errors import InputError


def resolve_precision(precision: str) -> str:
    """The Lightning precision that "auto" stands for on this machine; any other is itself.

    Raises:
        InputError: 16-mixed without a GPU, which Lightning would silently replace.
    """
    if precision == "16-mixed" and not torch.cuda.is_available():
        raise InputError("precision", precision, "needs a GPU, and this machine has none; take auto or 32-true")
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    cpu = torch.cpu.get_capabilities()
    by_avx512 = cpu.get("avx512_bf16") and not cpu["cpu_name"].startswith("Intel")  # whose float32 is faster
    return "bf16-mixed" if cpu.get("amx_bf16") or by_avx512 else "32-true"


def trains_on(precision: str) -> str:
    """What decides the last bits on this machine, as in "cpu AVX2 in 32-true with torch 2.15.0"."""
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"{device} in {resolve_precision(precision)} with torch {torch.__version__}"
