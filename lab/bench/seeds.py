"""One random generator for each use, so that drawing more for one leaves the others unchanged."""

import hashlib

import torch


def key(seed: int, *use: object) -> int:
    """The seed of a generator of its own for `use`, say ("data",) or ("projections", step)."""
    name = "/".join(str(part) for part in (seed, *use))
    digest = hashlib.sha256(name.encode()).digest()
    # 63 bits, since manual_seed takes a signed 64-bit number.
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *use: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for `use`.

    Generators of different uses or seeds are independent, and adding a use changes no other.
    Draw data and weights on the CPU, the default, and they are the same on every device.
    """
    return torch.Generator(device).manual_seed(key(seed, *use))
