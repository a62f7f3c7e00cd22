"""Weights in the old form that `torch.save` writes: read as data only, never run as the code they may contain."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 (the error alone: torch raises it for what is not plain weights)

import torch

from swarmnode.errors import CheckpointBroken

__all__ = ["open_pickled", "tensors_in"]


def open_pickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, mapped from disk and not read yet.

    Raises:
        CheckpointBroken: the file is damaged, or holds something else than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise CheckpointBroken(
            f"{path} holds something else than weights, so it is not opened.",
            hint="Such a file can run code. Use a model with safetensors.",
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise CheckpointBroken(
            f"{path} is damaged, or older than torch 1.6.", hint="Download it again, or use safetensors."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(one, torch.Tensor) for one in content.values()):
        raise CheckpointBroken(f"{path} is no table of tensors.", hint="Use a model with safetensors.")
    return content


def tensors_in(path: Path) -> list[str]:
    """The names of the tensors in a file. Raises like `open_pickled`."""
    return list(open_pickled(path))
