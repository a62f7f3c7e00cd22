"""The gate of a private swarm over real connections: who holds the key comes in, nobody else by any way tried here."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trio

from swarmnode.errors import PeerFault, PeerRefused, PeerUnreachable
from swarmnode.node.identity import Identity, create_identity
from swarmnode.node.joining import join_swarm
from swarmnode.node.net import gate as gate_file
from swarmnode.node.net.gate import GATE_SECONDS, Gate, Gated
from swarmnode.node.net.guests import Guests
from swarmnode.node.net.host import open_host
from swarmnode.node.net.multistream import choose, offer
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.net.p2p import ID, KADEMLIA, MuxedConnUnavailable, PeerInfo, new_host
from swarmnode.node.net.reaching import ReachingNetwork
from swarmnode.protocols import limits
from swarmnode.protocols.frames import FrameReader, encode_frame
from swarmnode.protocols.gate import Answer, Hello, Proof, encode, parse
from swarmnode.protocols.ids import GATE, SPOKEN
from swarmnode.protocols.swarm_key import SwarmKey

ECHO = "/test/echo/1"
IDENTIFY = "/ipfs/id/1.0.0"
PING = "/ipfs/ping/1.0.0"
RELAY = "/libp2p/circuit/relay/0.2.0/hop"
EVERYTHING = (ECHO, IDENTIFY, PING, RELAY, KADEMLIA, *SPOKEN)

KEY = SwarmKey(bytes(range(32)))
OTHER_KEY = SwarmKey(bytes(range(1, 33)))


@pytest.fixture(params=["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"])
def listen(request: pytest.FixtureRequest) -> str:
    """Each of these runs over every transport."""
    return str(request.param)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    await stream.send_eof()


@asynccontextmanager
async def node(listen: str, gate: Gate | SwarmKey | None, identity: Identity | None = None) -> AsyncIterator[Network]:
    identity = identity or create_identity()
    if not isinstance(gate, Gate):
        gate = Gate(identity.peer, gate)
    async with open_host(identity, listen=[listen], gate=gate) as network:
        network.handle(ECHO, echo)
        yield network


@asynccontextmanager
async def two(listen: str, one: SwarmKey | None, other: SwarmKey | None) -> AsyncIterator[tuple[Network, Network]]:
    async with node(listen, one) as first, node(listen, other) as second:
        yield first, second


async def ask(network: Network, peer: str, question: bytes, addrs: tuple[str, ...] = ()) -> bytes:
    stream = await network.open_stream(peer, ECHO, addrs)
    await stream.send_all(question)
    await stream.send_eof()
    answer = b""
    while piece := await stream.receive_some(65536):
        answer += piece
    await stream.aclose()
    return answer


async def is_alone(network: Network) -> bool:
    """Whether a node ends up without a connection."""
    with trio.move_on_after(5):
        while network.connected:  # noqa: ASYNC110 - a network tells nobody of its neighbours
            await trio.sleep(0.01)
    return not network.connected


async def test_who_holds_the_key_comes_in(listen: str) -> None:
    async with two(listen, KEY, SwarmKey(KEY.secret)) as (one, other), node(listen, KEY) as third:
        assert await one.connect(other.addrs[0]) == other.peer
        assert await ask(one, other.peer, b"there") == b"there"
        assert await ask(other, one.peer, b"and back") == b"and back"
        await third.connect(other.addrs[0])
        found = await third.closest_peers(bytes(32), 3)
        assert {each.peer for each in found} == {one.peer, other.peer, third.peer}


WANTED = "it belongs to a private swarm, and this node has no swarm key."
NO_KEY = "this swarm is private, and it has no swarm key."
WRONG_KEY = "it has another swarm key than this node."


@pytest.mark.parametrize(
    ("dialler", "listener", "ours", "theirs"),
    [
        (None, KEY, WANTED, NO_KEY),
        (KEY, None, NO_KEY, WANTED),
        (OTHER_KEY, KEY, WRONG_KEY, WRONG_KEY),
    ],
    ids=["dialler without", "listener without", "another"],
)
async def test_who_does_not_stays_out_and_both_say_why_once(  # noqa: PLR0917 - what pytest fills in
    listen: str,
    dialler: SwarmKey | None,
    listener: SwarmKey | None,
    ours: str,
    theirs: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two(listen, dialler, listener) as (one, other):
        for _ in range(3):
            with pytest.raises(PeerRefused, match=ours) as refused:
                await one.connect(other.addrs[0])
            assert refused.value.peer == other.peer
            assert "--swarm-key" in refused.value.hint
            with pytest.raises(PeerFault):
                await ask(one, other.peer, b"let me in", other.addrs)
            assert await is_alone(one)
            assert await is_alone(other)
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert sorted(said) == sorted(
            [f"No connection with {other.peer}: {ours}", f"No connection with {one.peer}: {theirs}"]
        )


async def test_joining_without_the_key_is_one_clear_sentence(listen: str) -> None:
    async with two(listen, None, KEY) as (one, other):
        with pytest.raises(PeerRefused, match="private swarm") as refused:
            await join_swarm(one, other.addrs)
        assert refused.value.exit_code != 0


class Careless(Gate):
    """A stranger that lets everybody pass and says nothing at the gate."""

    async def admit(self, connection: Gated, *, opened_by_us: bool) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_stranger_gets_no_protocol_in_either_direction(listen: str) -> None:
    stranger_id = create_identity()
    stranger_gate = Careless(stranger_id.peer)
    async with node(listen, KEY) as member, node(listen, stranger_gate, stranger_id) as stranger:
        called: list[str] = []

        async def note(stream: Stream) -> None:
            called.append(stream.peer)

        for protocol in (*SPOKEN, ECHO):
            member.handle(protocol, note)
        for protocol in EVERYTHING:
            with pytest.raises(PeerFault):
                await stranger.open_stream(member.peer, protocol, member.addrs)
            with pytest.raises(PeerFault):
                await member.open_stream(stranger.peer, protocol, stranger.addrs)
        assert not called
        assert await is_alone(member)
        assert member.questions == 0  # type: ignore[attr-defined]


class Scripted(Gate):
    """A stranger whose every connection is played by a function of the connection and who opened it."""

    def __init__(self, peer: str, play: Any) -> None:
        super().__init__(peer)
        self._play = play

    async def admit(self, connection: Gated, *, opened_by_us: bool) -> None:
        try:
            await self._play(connection, opened_by_us)
        except (PeerFault, MuxedConnUnavailable) as error:
            raise PeerRefused("The play is over.") from error


class Talk:
    """The gate's messages, for those who play a part."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._reader = FrameReader(0)

    async def hear(self) -> Any:
        while (frame := self._reader.next_frame()) is None:
            data = await self.stream.receive_some(4096)
            if not data:
                return None
            self._reader.feed(data)
        return parse(frame)

    async def say(self, message: Any) -> None:
        await self.stream.send_all(encode(message))


async def opened(connection: Gated) -> Talk:
    stream = (await connection.open_stream()).stream
    await choose(stream, GATE)
    return Talk(stream)


async def accepted(connection: Gated) -> Talk:
    stream = (await connection.accept_stream()).stream
    await offer(stream, (GATE,))
    return Talk(stream)


async def get_in(listen: str, play: Any, identity: Identity | None = None) -> str:
    """Let a stranger that plays `play` dial a member, and return why the member did not let it in."""
    identity = identity or create_identity()
    why: list[str] = []

    class Watched(Gate):
        async def admit(self, connection: Gated, *, opened_by_us: bool) -> None:
            try:
                await super().admit(connection, opened_by_us=opened_by_us)
            except PeerRefused as refusal:
                why.append(refusal.message)
                raise

    member_id = create_identity()
    async with (
        node(listen, Watched(member_id.peer, KEY), member_id) as member,
        node(listen, Scripted(identity.peer, play), identity) as stranger,
    ):
        # whatever the stranger makes itself believe, the member must not have it
        with suppress(PeerFault):
            await stranger.connect(member.addrs[0])
        with trio.fail_after(GATE_SECONDS + 3):
            while not why:  # noqa: ASYNC110 - the gate tells nobody else
                await trio.sleep(0.01)
        assert await is_alone(member)
    return why[0]


async def test_a_proof_that_was_good_once_is_not_good_again(listen: str) -> None:
    traitor = create_identity()
    heard: list[Any] = []

    class Overheard(Gate):
        """A member's own gate; what is said on the gate's stream gets out all the same."""

        async def admit(self, connection: Any, *, opened_by_us: bool) -> None:
            original = gate_file._Talk.say

            async def say(talk: Any, message: Any) -> None:
                heard.append(message)
                await original(talk, message)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gate_file._Talk, "say", say)
                patch.setattr("secrets.token_bytes", bytes)
                await super().admit(connection, opened_by_us=opened_by_us)

    async with node(listen, KEY) as member, node(listen, Overheard(traitor.peer, KEY), traitor) as while_member:
        assert await while_member.connect(member.addrs[0]) == member.peer
    [good] = [message for message in heard if isinstance(message, Proof)]

    async def replay(connection: Gated, opened_by_us: bool) -> None:
        talk = await opened(connection)
        await talk.say(Hello(bytes(limits.NONCE_BYTES)))
        assert isinstance(await talk.hear(), Answer)
        await talk.say(good)
        await talk.hear()

    assert "another swarm key" in await get_in(listen, replay, traitor)


async def test_a_proof_sent_back_to_its_maker(listen: str) -> None:
    async def reflect(connection: Gated, opened_by_us: bool) -> None:
        talk = await opened(connection)
        nonce = secrets.token_bytes(limits.NONCE_BYTES)
        await talk.say(Hello(nonce))
        answer = await talk.hear()
        await talk.say(Proof(answer.proof))
        await talk.hear()

    assert "another swarm key" in await get_in(listen, reflect)


async def test_a_listener_that_has_the_proof_made_by_the_dialler_itself(
    listen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_file, "GATE_SECONDS", 1.0)
    stranger_id = create_identity()
    asked, answered = trio.open_memory_channel[Hello](1), trio.open_memory_channel[Any](1)

    async def play(connection: Gated, opened_by_us: bool) -> None:
        if opened_by_us:  # let the member prove over this connection what it asks over the other
            hello = await asked[1].receive()
            talk = await opened(connection)
            await talk.say(hello)
            await answered[0].send(await talk.hear())
        else:
            talk = await accepted(connection)
            await asked[0].send(await talk.hear())
            await talk.say(await answered[1].receive())
        await talk.hear()

    stranger_gate = Scripted(stranger_id.peer, play)
    async with node(listen, KEY) as member, node(listen, stranger_gate, stranger_id) as stranger:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_in_vain, stranger, member)
            with pytest.raises(PeerFault):
                await ask(member, stranger.peer, b"text", stranger.addrs)
        assert await is_alone(member)


async def test_a_man_in_the_middle_carries_honest_proofs_in_vain(listen: str) -> None:
    middle_id = create_identity()
    streams = trio.open_memory_channel[Any](1)
    carried: list[bytes] = []

    async def pump(source: Any, sink: Any) -> None:
        try:
            while data := await source.receive_some(4096):
                carried.append(data)
                await sink.send_all(data)
            await sink.send_eof()
        except PeerFault:
            await sink.reset()

    async def play(connection: Gated, opened_by_us: bool) -> None:
        if not opened_by_us:
            await streams[0].send((await connection.accept_stream()).stream)
            await trio.sleep_forever()
        theirs = (await connection.open_stream()).stream
        ours = await streams[1].receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, ours, theirs)
            nursery.start_soon(pump, theirs, ours)

    middle_gate = Scripted(middle_id.peer, play)
    async with two(listen, KEY, KEY) as (one, other), node(listen, middle_gate, middle_id) as middle:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_in_vain, middle, other)
            with pytest.raises(PeerRefused, match="another swarm key"):
                await one.connect(middle.addrs[0])
        assert any(b"answer" in data for data in carried)  # the honest proof did come this way
        assert await is_alone(one)
        assert await is_alone(other)


async def _in_vain(dialler: Network, listener: Network) -> None:
    with suppress(PeerFault):
        await dialler.connect(listener.addrs[0])


async def test_one_who_says_nothing_or_too_much_or_nonsense(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_file, "GATE_SECONDS", 0.3)

    async def silent(connection: Gated, opened_by_us: bool) -> None:
        await trio.sleep_forever()

    async def half(connection: Gated, opened_by_us: bool) -> None:
        talk = await opened(connection)
        await talk.stream.send_all(encode(Hello(bytes(32)))[:20])
        await talk.hear()

    async def endless(connection: Gated, opened_by_us: bool) -> None:
        talk = await opened(connection)
        await talk.stream.send_all(encode_frame({"type": "hello", "nonce": bytes(32), "more": "x" * 9000})[0])
        await talk.hear()

    async def garbage(connection: Gated, opened_by_us: bool) -> None:
        talk = await opened(connection)
        await talk.stream.send_all(bytes(500))
        await talk.hear()

    async def impatient(connection: Gated, opened_by_us: bool) -> None:
        talk = await opened(connection)
        await talk.say(Proof(bytes(32)))
        await talk.hear()

    async def many(connection: Gated, opened_by_us: bool) -> None:
        streams = []
        for _ in range(200):
            streams.append((await connection.open_stream()).stream)
            await streams[-1].send_all(b"\x13/multistream/1.0.0\n")
        await streams[-1].receive_some(1)

    async def gone(connection: Any, opened_by_us: bool) -> None:
        await connection.close()

    assert "it did not within" in await get_in(listen, silent)
    assert "it did not within" in await get_in(listen, half)
    assert "at most 1024 bytes" in await get_in(listen, endless)
    assert "broke the gate's protocol" in await get_in(listen, garbage)
    assert "a hello was due" in await get_in(listen, impatient)
    assert "it did not within" in await get_in(listen, many)
    assert "it closed the connection" in await get_in(listen, gone)


async def test_the_log_is_not_for_strangers_to_fill(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    member_id = create_identity()
    member_gate = Gate(member_id.peer, KEY, Guests(allowed=frozenset()))
    for number in range(200):
        with pytest.raises(PeerRefused):
            member_gate.check(f"peer {number}")
        with pytest.raises(PeerRefused):
            member_gate.check(f"peer {number}")
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == gate_file.MAX_SAID


async def test_a_stock_libp2p_host_has_nothing_of_a_private_swarm() -> None:
    stock = new_host()
    async with node("/ip4/127.0.0.1/tcp/0", KEY) as member, stock.run([_maddr("/ip4/127.0.0.1/tcp/0")]):
        address = f"{stock.get_addrs()[0]}"
        with pytest.raises(PeerFault):
            await member.connect(address)
        with suppress(Exception):  # it may well believe to be connected; what counts is that it gets nothing
            await stock.connect(PeerInfo(ID.from_base58(member.peer), [_maddr(member.addrs[0].partition("/p2p/")[0])]))
        for protocol in EVERYTHING:
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever py-libp2p makes of being refused
                await stock.new_stream(ID.from_base58(member.peer), [protocol])
        assert await is_alone(member)


def _maddr(addr: str) -> Any:
    from multiaddr import Multiaddr

    return Multiaddr(addr)


@pytest.mark.parametrize("dials", ["the one with the list", "the one on it"])
async def test_lists_hold_in_both_directions(listen: str, dials: str) -> None:
    host_id, friend_id, foe_id = (create_identity() for _ in range(3))
    host_gate = Gate(host_id.peer, guests=Guests(frozenset({friend_id.peer, foe_id.peer}), frozenset({foe_id.peer})))
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(node(listen, host_gate, host_id))
        friend = await stack.enter_async_context(node(listen, None, friend_id))
        foe = await stack.enter_async_context(node(listen, None, foe_id))
        unknown = await stack.enter_async_context(node(listen, None))
        for guest in (foe, unknown):
            one, other = (host, guest) if dials == "the one with the list" else (guest, host)
            with pytest.raises((PeerRefused, PeerUnreachable)):
                await one.connect(other.addrs[0])
            with pytest.raises(PeerFault):
                await ask(one, other.peer, b"?", other.addrs)
            assert await is_alone(host)
        one, other = (host, friend) if dials == "the one with the list" else (friend, host)
        await one.connect(other.addrs[0])
        assert await ask(one, other.peer, b"!") == b"!"


def test_the_rule_of_the_lists() -> None:
    assert Guests().why_not("anybody") is None
    assert Guests(denied=frozenset({"a"})).why_not("a")
    assert Guests(denied=frozenset({"a"})).why_not("b") is None
    assert Guests(frozenset({"a"})).why_not("a") is None
    assert Guests(frozenset({"a"})).why_not("b")
    assert Guests(frozenset()).why_not("a")
    assert Guests(frozenset({"a"}), frozenset({"a"})).why_not("a")


async def test_a_relay_brings_nobody_past_the_gate(caplog: pytest.LogCaptureFixture) -> None:
    relay_id, stranger_id, friend_id = (create_identity() for _ in range(3))

    class Indulgent(Gate):
        """A member that lets strangers through to itself, against the rules."""

        async def admit(self, connection: Gated, *, opened_by_us: bool) -> None:
            if connection.peer != stranger_id.peer:
                await super().admit(connection, opened_by_us=opened_by_us)

    relay_gate, server_id = Indulgent(relay_id.peer, KEY), create_identity()
    async with (
        open_host(relay_id, listen=["/ip4/127.0.0.1/tcp/0"], gate=relay_gate, relays=True) as relay,
        open_host(server_id, listen=(), gate=Gate(server_id.peer, KEY)) as server,
        node("/ip4/127.0.0.1/tcp/0", None, stranger_id) as stranger,
        node("/ip4/127.0.0.1/tcp/0", KEY, friend_id) as friend,
    ):
        assert isinstance(server, ReachingNetwork)
        await server.connect(relay.addrs[0])
        await server.keeper.reservations.check()
        server.announce(server.keeper.reservations.addrs)
        server.handle(ECHO, echo)
        with pytest.raises(PeerFault):
            await ask(stranger, server.peer, b"let me in", server.addrs)
        assert server.connected == (relay.peer,)
        assert f"No connection with {stranger.peer}: {NO_KEY}" in [record.getMessage() for record in caplog.records]
        assert await ask(friend, server.peer, b"let me in", server.addrs) == b"let me in"
        assert set(server.connected) == {relay.peer, friend.peer}
