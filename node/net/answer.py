"""Runs a protocol's handler on one stream so that nothing it does takes the node down. Knows no libp2p."""

from __future__ import annotations

import logging

import trio

from swarmnode.errors import SwarmnodeError

from .network import Stream, StreamHandler

__all__ = ["answer"]

_log = logging.getLogger("swarmnode.network")


async def answer(protocol: str, handler: StreamHandler, stream: Stream) -> None:
    """Run `handler`, then close the stream; reset it when the handler raised or was cancelled.

    An error of ours is logged in one line, anything else with its traceback. Only cancellation gets out.
    """
    try:
        await handler(stream)
    except Exception as error:  # noqa: BLE001 - the outermost edge of the handler's task
        _report(protocol, stream.peer, error)
        await stream.reset()
    except BaseException:
        with trio.CancelScope(shield=True):
            await stream.reset()
        raise
    else:
        await stream.aclose()


def _report(protocol: str, peer: str, error: Exception) -> None:
    known = _only_ours(error)
    if known:
        _log.info("%s from %s ended: %s", protocol, peer, "; ".join(each.message for each in known))
    else:
        _log.error("%s from %s failed", protocol, peer, exc_info=error)


def _only_ours(error: BaseException) -> list[SwarmnodeError]:
    """The errors of ours that `error` is or holds; empty when there is any other in it."""
    if isinstance(error, SwarmnodeError):
        return [error]
    if not isinstance(error, BaseExceptionGroup):
        return []
    found: list[SwarmnodeError] = []
    for each in error.exceptions:
        inner = _only_ours(each)
        if not inner:
            return []
        found += inner
    return found
