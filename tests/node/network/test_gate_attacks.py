"""The gate of a private swarm against those who cheat: overheard proofs, go-betweens, silence, floods and nonsense."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trio

from support.gated import (
    ECHO,
    EVERYTHING,
    KEY,
    NO_KEY,
    OTHER_KEY,
    WANTED,
    WRONG_KEY,
    ask,
    is_alone,
    line,
    lines,
    node,
    said,
    two,
)
from support.loopback import CARRIERS
from swarmnode.errors import PeerFault, PeerRefused
from swarmnode.node.identity import create_identity
from swarmnode.node.net import gate as gate_file
from swarmnode.node.net.gate import GATE_SECONDS, Gate, Gated
from swarmnode.node.net.multistream import choose, offer
from swarmnode.node.net.network import Network, Stream
from swarmnode.node.net.p2p import MuxedConnUnavailable
from swarmnode.protocols import limits
from swarmnode.protocols.frames import FrameReader, encode_frame
from swarmnode.protocols.gate import Answer, GateMessage, Hello, Proof, Shut, encode, parse
from swarmnode.protocols.ids import GATE, SPOKEN
from swarmnode.protocols.swarm_key import SwarmKey


@pytest.fixture(params=CARRIERS)
def listen(request: pytest.FixtureRequest) -> str:
    """Each of these runs over every transport."""
    return str(request.param)


class Careless(Gate):
    """A stranger that lets everybody pass and says nothing at the gate."""

    async def admit(self, connection: Gated, *, opened_by_us: bool) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_stranger_gets_no_protocol_in_either_direction(listen: str, caplog: pytest.LogCaptureFixture) -> None:
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
        both = (line(stranger.peer, NO_KEY), line(member.peer, WANTED))
        assert await said(caplog, *both) == sorted(both)


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


async def get_in(listen: str, play: Any, caplog: pytest.LogCaptureFixture) -> str:
    """Let a stranger that plays `play` dial a member, and return the one line in which that says why it did not let it
    in, without the stranger's name."""
    identity, member_id = create_identity(), create_identity()
    refused = trio.Event()

    class Watched(Gate):
        async def admit(self, connection: Gated, *, opened_by_us: bool) -> None:
            try:
                await super().admit(connection, opened_by_us=opened_by_us)
            finally:
                refused.set()

    async with (
        node(listen, Watched(member_id.peer, KEY), member_id) as member,
        node(listen, Scripted(identity.peer, play), identity) as stranger,
    ):
        # whatever the stranger makes itself believe, the member must not have it
        with suppress(PeerFault):
            await stranger.connect(member.addrs[0])
        with trio.fail_after(GATE_SECONDS + 3):
            await refused.wait()
        assert await is_alone(member)
    [told] = lines(caplog)
    start = line(identity.peer, "")
    assert told.startswith(start)
    return told.removeprefix(start)


@contextmanager
def overheard() -> Iterator[list[GateMessage]]:
    """What is said at any gate in the meantime."""
    original = gate_file._Talk.hear
    heard: list[GateMessage] = []

    async def hear(talk: Any) -> GateMessage:
        heard.append(message := await original(talk))
        return message

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_file._Talk, "hear", hear)
        yield heard


class Replaying(Gate):
    """One that says again what was said on another connection, and then tells like any node what came of it."""

    def __init__(self, peer: str, heard: list[GateMessage]) -> None:
        super().__init__(peer, OTHER_KEY)
        [self._hello] = [message for message in heard if isinstance(message, Hello)]
        [self._answer] = [message for message in heard if isinstance(message, Answer)]
        [self._proof] = [message for message in heard if isinstance(message, Proof)]

    async def _prove_first(self, connection: Gated, key: SwarmKey) -> None:
        talk = await opened(connection)
        await talk.say(self._hello)
        assert isinstance(await talk.hear(), Answer)
        await talk.say(self._proof)
        await self._be_shut_out(connection, talk)

    async def _ask_first(self, connection: Gated, key: SwarmKey) -> None:
        talk = await accepted(connection)
        assert isinstance(await talk.hear(), Hello)
        await talk.say(self._answer)
        await self._be_shut_out(connection, talk)

    async def _be_shut_out(self, connection: Gated, talk: Talk) -> None:
        said = await talk.hear()
        assert isinstance(said, Shut)
        raise gate_file._shut(connection.peer, said.why)


@pytest.mark.parametrize("dials", ["who replays", "who is asked again"])
async def test_a_proof_that_was_good_once_is_not_good_again(
    listen: str, dials: str, caplog: pytest.LogCaptureFixture
) -> None:
    traitor = create_identity()

    def in_order(one: Network, other: Network) -> tuple[Network, Network]:
        return (one, other) if dials == "who replays" else (other, one)

    async with node(listen, KEY) as member:
        async with node(listen, KEY, traitor) as while_member:
            dialler, listener = in_order(while_member, member)
            with overheard() as heard:
                assert await dialler.connect(listener.addrs[0]) == listener.peer
        assert await is_alone(member)
        assert not lines(caplog)
        async with node(listen, Replaying(traitor.peer, heard), traitor) as thief:
            dialler, listener = in_order(thief, member)
            with pytest.raises(PeerRefused, match=WRONG_KEY):
                await dialler.connect(listener.addrs[0])
            assert await is_alone(member)
            assert await is_alone(thief)
            both = (line(traitor.peer, WRONG_KEY), line(member.peer, WRONG_KEY))
            assert await said(caplog, *both) == sorted(both)


async def test_a_proof_sent_back_to_its_maker(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    async def reflect(connection: Gated, opened_by_us: bool) -> None:
        talk = await opened(connection)
        nonce = secrets.token_bytes(limits.NONCE_BYTES)
        await talk.say(Hello(nonce))
        answer = await talk.hear()
        await talk.say(Proof(answer.proof))
        await talk.hear()

    assert await get_in(listen, reflect, caplog) == WRONG_KEY


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


async def silent(connection: Any, opened_by_us: bool) -> None:
    await connection.muxer.ended.wait()


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
    await opened(connection)
    await connection.close()


@pytest.mark.parametrize(
    ("play", "why"),
    [
        (silent, "it did not within 0 s"),
        (half, "it did not within 0 s"),
        (many, "it did not within 0 s"),
        (endless, "it broke the gate's protocol (A peer has at most 1024 bytes to say at the gate)"),
        (garbage, "it broke the gate's protocol (The bytes are not a swarmnode frame)"),
        (impatient, "it broke the gate's protocol (a hello was due)"),
        (gone, "it closed the connection instead"),
    ],
)
async def test_one_who_says_nothing_or_too_much_or_nonsense(
    listen: str, play: Any, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gate_file, "GATE_SECONDS", 0.3)
    assert await get_in(listen, play, caplog) == f"it was to prove the swarm key, and {why}."
