"""Large language models run by peers that each hold a few blocks.

Importing this is instant: the names below load what they need when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarmnode.errors import SwarmnodeError as SwarmnodeError
    from swarmnode.node.library import Model as Model
    from swarmnode.node.library import Node as Node
    from swarmnode.node.library import open_node as open_node

__version__ = "0.1.0"

_HOMES = {
    "Model": "swarmnode.node.library",
    "Node": "swarmnode.node.library",
    "SwarmnodeError": "swarmnode.errors",
    "open_node": "swarmnode.node.library",
}

__all__ = ["Model", "Node", "SwarmnodeError", "__version__", "open_node"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
