"""Peers of the local network find each other by multicast DNS. A help, never needed: where it does not work, it is off.

As in libp2p's mDNS specification the addresses are in the TXT record (`dnsaddr=…`), under a service name of our own, so
that only peers of ours meet. py-libp2p's own writes to the peer store from zeroconf's thread.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio
from zeroconf import ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

__all__ = ["stay_on_lan"]

SERVICE = "_swarmnode._udp.local."
MAX_ADDRS = 8
MAX_WAITING = 64
"""Neighbours found and not yet connected to; more are forgotten, they will be seen again."""
INFO_MILLISECONDS = 3000
CLOSE_SECONDS = 0.8

_log = logging.getLogger("swarmnode.network")


async def stay_on_lan(addrs: Sequence[str], meet: Callable[[str], Awaitable[None]]) -> None:
    """Tell the local network our addresses, and run `meet` with each full address found there, for ever.

    Args:
        addrs: full multiaddrs; those on loopback are told too, for peers of the same machine.
        meet: connects to an address; it must not raise.
    """
    try:
        zeroconf = await trio.to_thread.run_sync(Zeroconf)
    except OSError as error:
        _log.info("peers of the local network cannot be found: %s", error)
        return
    name = f"{secrets.token_hex(16)}.{SERVICE}"
    send, receive = trio.open_memory_channel[str](MAX_WAITING)
    listener = _Listener(name, trio.lowlevel.current_trio_token(), send)
    try:
        ServiceBrowser(zeroconf, SERVICE, listener=listener)
        async with trio.open_nursery() as nursery:
            if addrs:
                nursery.start_soon(_tell, zeroconf, name, addrs)
            async for addr in receive:
                nursery.start_soon(meet, addr)
    finally:
        with trio.move_on_after(CLOSE_SECONDS) as scope:
            scope.shield = True
            await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)


async def _tell(zeroconf: Zeroconf, name: str, addrs: Sequence[str]) -> None:
    hosts = sorted({addr.split("/")[2] for addr in addrs})
    info = ServiceInfo(
        SERVICE,
        name,
        port=int(addrs[0].split("/")[4]),
        properties={f"dnsaddr{number or ''}": addr for number, addr in enumerate(addrs[:MAX_ADDRS])},
        server=name.replace(SERVICE, "local."),
        addresses=[ipaddress.ip_address(host).packed for host in hosts],
    )
    register = partial(zeroconf.register_service, info)
    try:
        await trio.to_thread.run_sync(register, abandon_on_cancel=True)
    except Exception as error:  # noqa: BLE001 - it has many ways of saying that multicast does not work here
        _log.info("this node cannot be found on the local network: %r", error)


class _Listener(ServiceListener):
    """Called in zeroconf's thread."""

    def __init__(self, ours: str, token: trio.lowlevel.TrioToken, found: trio.MemorySendChannel[str]) -> None:
        self._ours = ours
        self._token = token
        self._found = found

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        if name == self._ours:
            return
        info = zc.get_service_info(type_, name, timeout=INFO_MILLISECONDS)
        if info is None:
            return
        for key, value in sorted(info.properties.items())[:MAX_ADDRS]:
            if key.startswith(b"dnsaddr") and value is not None and value.isascii():
                try:
                    self._token.run_sync_soon(self._offer, value.decode("ascii"))
                except trio.RunFinishedError:
                    return

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Nothing is held for a neighbour; its connection says when it has gone."""

    def _offer(self, addr: str) -> None:
        try:
            self._found.send_nowait(addr)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("a neighbour was not met: %s", addr)
