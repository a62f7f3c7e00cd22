"""The error of connections that did not come about or have ended, below those that peers and people see."""

from __future__ import annotations

__all__ = ["WireLost"]


class WireLost(Exception):
    """The connection is gone, or never was."""
