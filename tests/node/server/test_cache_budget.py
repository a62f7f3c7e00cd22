"""The cache budget: never more than there is, the idle give way first, the oldest always gets on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarmnode.node.server.busy import Busy
from swarmnode.node.server.cache_budget import CacheBudget, Reserved
from swarmnode.node.server.schedule import Activity, Chunk, Pending, Priority, Schedule

IDLE_SECONDS, PATIENCE_SECONDS = 5.0, 10.0
WAITS = Reserved(False)


def slab_tokens(tokens: int, first: int = 64) -> int:
    """What is allocated for so many tokens by slabs that double."""
    return first << max(0, -(-tokens // first) - 1).bit_length() if tokens else 0


def page_tokens(tokens: int, page: int) -> int:
    """The same by pages."""
    return -(-tokens // page) * page


class Sessions:
    """A budget whose sessions do what a test says."""

    def __init__(self, budget: int, **limits: int) -> None:
        self.doing: dict[bytes, Activity] = {}
        self.budget = CacheBudget(
            budget,
            lambda session: self.doing.get(session, Activity.IDLE),
            evictable_seconds=IDLE_SECONDS,
            patience_seconds=PATIENCE_SECONDS,
            **limits,
        )

    def open(
        self,
        session: str,
        *,
        peer: str | None = None,
        priority: Priority = Priority.OTHERS,
        wanted: int = 1,
        now: float = 0.0,
    ) -> Busy | None:
        return self.budget.open(
            session.encode(),
            peer or session,
            priority=priority,
            wanted_tokens=wanted,
            cost=lambda tokens: tokens,
            now=now,
        )

    def hold(self, session: str, tokens: int, *, now: float = 0.0, peer: str | None = None, own: bool = False) -> None:
        """Open a session that holds so many tokens and is idle then."""
        assert self.open(session, peer=peer, priority=Priority.OWN if own else Priority.OTHERS, now=now) is None
        assert self.reserve(session, tokens, now=now).granted
        self.doing[session.encode()] = Activity.IDLE

    def reserve(self, session: str, tokens: int, *, now: float) -> Reserved:
        self.doing[session.encode()] = Activity.WAITING
        answer = self.budget.reserve(session.encode(), tokens, now)
        if answer.granted:
            self.doing[session.encode()] = Activity.RUNNING
        return answer


def granted(*evicted: str) -> Reserved:
    return Reserved(True, tuple(session.encode() for session in evicted))


def test_an_open_session_holds_nothing_and_grows_by_what_is_allocated() -> None:
    budget = CacheBudget(1000, lambda _: Activity.IDLE)
    cost = partial(slab_tokens, first=64)
    assert budget.open(b"a", "peer", priority=Priority.OTHERS, wanted_tokens=500, cost=cost, now=0.0) is None
    assert (budget.free, budget.sessions) == (1000, 1)
    for tokens, held in ((1, 64), (64, 64), (65, 128), (30, 128), (500, 512)):
        assert budget.reserve(b"a", tokens, 0.0) == granted()
        assert budget.free == 1000 - held
    statistics = budget.statistics()
    assert (statistics.tokens, statistics.held, statistics.budget) == (500, 512, 1000)
    busy = budget.reserve(b"a", 513, 0.0).refused
    assert busy == Busy("The whole cache of this server has no room for 513 tokens.", None)
    budget.release(b"a", 1.0)
    assert (budget.free, budget.sessions) == (1000, 0)


def test_the_longest_idle_session_gives_way_first_and_only_if_that_helps() -> None:
    sessions = Sessions(100)
    for number, name in enumerate("abc"):
        sessions.hold(name, 30, now=float(number))
    assert sessions.open("new", now=6.0) is None
    assert sessions.reserve("new", 71, now=6.0) == WAITS  # c was busy until lately
    assert sessions.budget.statistics().waiting == 1
    assert sessions.reserve("new", 70, now=6.5) == granted("a", "b")
    answer = sessions.reserve("a", 31, now=7.0)
    assert answer.refused is not None
    assert answer.refused.reason == "The cache of this session was given to others."
    assert sessions.budget.knows(b"a")
    for name in "abc":
        sessions.budget.release(name.encode(), 8.0)
    assert sessions.budget.free == 30


def test_lower_classes_give_way_before_and_higher_ones_never() -> None:
    sessions = Sessions(100)
    sessions.hold("own", 40, own=True)
    sessions.hold("other", 50, now=1.0)
    assert sessions.open("new", priority=Priority.LISTED, now=50.0) is None
    assert sessions.reserve("new", 20, now=50.0) == granted("other")
    assert sessions.reserve("new", 70, now=50.0) == WAITS
    assert sessions.reserve("new", 70, now=60.0).refused is not None


def test_a_peer_above_its_share_gives_way_before_and_nobody_makes_room_for_it() -> None:
    sessions = Sessions(100)
    sessions.hold("modest", 20)
    for name in "xyz":
        sessions.hold(name, 20, peer="greedy", now=1.0)
    assert sessions.open("more", peer="greedy", now=20.0) is None
    assert sessions.reserve("more", 20, now=20.0) == granted()  # free is free
    assert sessions.reserve("more", 30, now=21.0) == granted("z")  # its own, although another is idle for longer
    sessions.doing[b"more"] = Activity.IDLE
    assert sessions.open("new", now=30.0) is None
    assert sessions.reserve("new", 20, now=30.0) == granted("more")


def test_the_session_in_a_batch_is_not_evicted_but_gets_no_further_chunk() -> None:
    sessions = Sessions(100)
    sessions.hold("old", 50)
    sessions.hold("young", 50)
    sessions.doing[b"young"] = Activity.RUNNING
    assert sessions.reserve("old", 60, now=1.0) == WAITS
    assert sessions.reserve("young", 50, now=1.0) == granted()
    assert sessions.reserve("old", 60, now=11.0) == WAITS
    sessions.doing[b"young"] = Activity.WAITING
    assert sessions.reserve("young", 50, now=11.1) == WAITS
    assert sessions.reserve("old", 60, now=11.2) == granted("young")
    assert sessions.budget.statistics().evicted_active == 1


def test_active_sessions_give_way_weakest_first() -> None:
    sessions = Sessions(100)
    sessions.hold("own", 30, own=True)
    for name in ("a", "b", "c"):
        sessions.hold(name, 20)
        sessions.doing[name.encode()] = Activity.WAITING
    assert sessions.reserve("a", 50, now=1.0) == WAITS
    assert sessions.reserve("b", 31, now=1.0) == WAITS
    assert sessions.reserve("b", 31, now=11.0) == granted("c")
    sessions.doing[b"b"] = Activity.WAITING
    assert sessions.reserve("a", 50, now=11.0) == granted("b")
    assert sessions.reserve("own", 60, now=12.0) == WAITS
    assert sessions.reserve("own", 60, now=22.0) == WAITS  # the only one left is in a batch
    sessions.doing[b"a"] = Activity.WAITING
    assert sessions.reserve("own", 60, now=22.1) == granted("a")


def test_who_was_to_give_way_goes_on_when_nobody_needs_it_any_more() -> None:
    sessions = Sessions(100)
    sessions.hold("old", 50)
    sessions.hold("young", 50)
    sessions.doing[b"young"] = Activity.RUNNING
    assert sessions.reserve("old", 60, now=1.0) == WAITS
    assert sessions.reserve("old", 60, now=11.0) == WAITS
    sessions.doing[b"old"] = Activity.IDLE  # its step was taken back
    assert sessions.reserve("young", 50, now=11.0) == granted()
    sessions.budget.release(b"old", 12.0)
    assert sessions.reserve("young", 100, now=12.0) == granted()


def test_the_youngest_waits_in_vain_and_is_told_when_to_come_again() -> None:
    sessions = Sessions(100)
    sessions.hold("old", 50)
    sessions.hold("young", 50)
    sessions.doing[b"old"] = Activity.RUNNING
    assert sessions.reserve("young", 60, now=1.0) == WAITS
    assert sessions.reserve("young", 60, now=10.9) == WAITS
    answer = sessions.reserve("young", 60, now=11.0)
    assert answer.refused is not None
    assert answer.refused.reason == "The cache has no room for 60 tokens of one session."
    assert answer.refused.retry_after_seconds is not None
    assert 1.0 <= answer.refused.retry_after_seconds <= 60.0
    assert sessions.budget.free == 50


def test_newcomers_stand_behind_those_that_wait() -> None:
    sessions = Sessions(100)
    sessions.hold("a", 40)
    sessions.hold("b", 40)
    assert sessions.open("empty") is None
    sessions.doing[b"b"] = Activity.RUNNING
    assert sessions.reserve("a", 70, now=1.0) == WAITS
    assert sessions.reserve("empty", 10, now=1.0) == WAITS
    assert sessions.reserve("b", 50, now=1.0) == granted()  # holds something: what stands still never ends
    busy = sessions.open("new", now=1.0)
    assert busy is not None
    assert busy.reason == "The cache is full; sessions that wait for room: 2."
    assert sessions.open("own", priority=Priority.OWN, now=1.0) is None


def test_who_was_refused_comes_before_newcomers_and_is_told_when() -> None:
    sessions = Sessions(100)
    for name in ("a", "b"):
        sessions.hold(name, 50)
    names = ("first", "second", "third", "fourth")
    for number, name in enumerate(names):
        busy = sessions.open(name, now=1.0)
        assert busy is not None
        assert busy.reason == f"The cache is full{f'; peers before you: {number}' if number else ''}."
    sessions.budget.release(b"a", 4.0)
    new = sessions.open("new", now=4.0)
    assert new is not None, "four usual sessions take all that the one has left"
    assert new.reason == "The cache is full; peers before you: 4."
    assert [sessions.open(name, now=4.0) for name in reversed(names)] == [None] * 4


def test_who_is_let_in_here_and_refused_elsewhere_keeps_its_place() -> None:
    sessions = Sessions(100)
    sessions.hold("a", 100)
    for name in ("first", "second"):
        assert sessions.open(name, now=1.0) is not None
    sessions.budget.release(b"a", 2.0)
    assert sessions.open("first", now=2.0) is None
    sessions.budget.release(b"first", 2.5)
    sessions.hold("b", 100, now=3.0, peer="second")
    busy = sessions.open("new", now=3.0)
    assert busy is not None
    assert busy.reason == "The cache is full; peers before you: 1."


def test_opens_are_refused_with_a_reason() -> None:
    sessions = Sessions(100, max_sessions=3, max_sessions_per_peer=2)
    busy = sessions.open("long", wanted=101)
    assert busy == Busy("The whole cache of this server has no room for 101 tokens.", None)
    sessions.hold("a", 100, peer="greedy")
    busy = sessions.open("b", peer="greedy")
    assert busy is not None
    assert busy.reason == "The cache is full."
    assert sessions.open("b", peer="greedy", now=5.0) is None  # the other is idle by now
    busy = sessions.open("c", peer="greedy", now=5.0)
    assert busy is not None
    assert busy.reason == "You already have 2 sessions here, the most for one peer."
    assert sessions.open("c", peer="modest", now=5.0) is None
    busy = sessions.open("d", peer="third", now=5.0)
    assert busy is not None
    assert busy.reason == "This server already runs its 3 sessions."


@pytest.mark.parametrize(("cost", "sessions"), [(slab_tokens, 20), (partial(page_tokens, page=16), 20), (2048, 5)])
def test_sessions_of_500_tokens_in_so_much_cache(cost: Callable[[int], int] | int, sessions: int) -> None:
    """10,240 tokens: four times as many as when each is promised its full length, of 2,048."""
    budget = CacheBudget(10_240, lambda _: Activity.RUNNING)
    taken = 0
    charged = cost if callable(cost) else lambda _: 2048
    while (
        budget.open(b"%d" % taken, f"peer{taken}", priority=Priority.OTHERS, wanted_tokens=500, cost=charged, now=0.0)
        is None
    ):
        assert budget.reserve(b"%d" % taken, 500, 0.0).granted
        taken += 1
    assert taken == sessions


PEERS = {"own": Priority.OWN, "listed": Priority.LISTED, "a": Priority.OTHERS, "b": Priority.OTHERS}


class AnyServer(RuleBasedStateMachine):
    """Schedule and budget as an engine drives them, whatever sessions do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.schedule: Schedule[None] = Schedule(batch_tokens=64)
        self.budget = CacheBudget(
            300, self.schedule.activity, evictable_seconds=IDLE_SECONDS, patience_seconds=PATIENCE_SECONDS
        )
        self.peers: dict[bytes, str] = {}
        self.tokens: dict[bytes, int] = {}
        self.held: dict[bytes, int] = {}
        self.stepped: dict[bytes, float] = {}
        self.running: dict[bytes, int] = {}
        self.ended: list[bytes] = []
        self.number = 0

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(peer=st.sampled_from(sorted(PEERS)))
    def open(self, peer: str) -> None:
        session = b"%d" % self.number
        busy = self.budget.open(
            session, peer, priority=PEERS[peer], wanted_tokens=100, cost=partial(slab_tokens, first=16), now=self.now
        )
        if busy is None:
            self.number += 1
            self.peers[session], self.tokens[session], self.held[session] = peer, 0, 0
            self.stepped[session] = self.now

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), tokens=st.sampled_from([1, 1, 20, 90]))
    def step(self, data: st.DataObject, tokens: int) -> None:
        self.add_step(data.draw(st.sampled_from(sorted(self.peers))), tokens)

    @rule(peer=st.sampled_from(sorted(PEERS)), tokens=st.sampled_from([1, 30, 60, 120]))
    def come(self, peer: str, tokens: int) -> None:
        """A new session's prompt, run at once if there is room."""
        self.open(peer)
        if self.peers:
            self.add_step(max(self.peers, key=int), tokens)
            self.next_batch()
            self.batch_done()

    def add_step(self, session: bytes, tokens: int) -> None:
        peer = self.peers[session]
        step = Pending(session, peer, self.tokens[session], (tokens,), PEERS[peer], self.now, None)
        if self.schedule.add(step) is None:
            self.tokens[session] += tokens

    @rule()
    def next_batch(self) -> None:
        self.ended.clear()

        def room(chunk: Chunk[None]) -> bool:
            session = chunk.step.session
            answer = self.budget.reserve(session, chunk.end, self.now)
            if answer.evicted:
                self.check_victims(session, max(self.held[session], slab_tokens(chunk.end, 16)), answer.evicted)
            if answer.refused is not None:
                assert not answer.granted
                assert not answer.evicted
                self.ended.append(session)
            self.ended.extend(answer.evicted)
            for each in self.ended:
                self.held[each] = 0
            if answer.granted:
                self.held[session] = max(self.held[session], slab_tokens(chunk.end, 16))
                self.stepped[session] = self.now
                self.running[session] = chunk.tokens
            return answer.granted

        self.schedule.next_batch(room)
        for session in list(self.ended):
            self.end(session)

    def check_victims(self, session: bytes, wanted: int, victims: tuple[bytes, ...]) -> None:
        """No more than needed, none that runs, none of a higher class, and the right ones of those that are idle."""
        free = 300 - sum(self.held.values())
        assert free + sum(self.held[each] for each in victims) >= wanted - self.held[session]
        assert free + sum(self.held[each] for each in victims[:-1]) < wanted - self.held[session]
        assert not self.running.keys() & victims
        assert all(self.held[each] and PEERS[self.peers[each]] >= PEERS[self.peers[session]] for each in victims)
        surplus = self.surplus(session, wanted)
        candidates = [
            each
            for each in self.peers
            if self.held[each] and self.idle(each) and PEERS[self.peers[each]] >= PEERS[self.peers[session]]
        ]
        if session in surplus:
            assert {self.peers[each] for each in victims} <= {self.peers[session]}
            candidates = [each for each in candidates if self.peers[each] == self.peers[session]]

        def order(session: bytes) -> tuple[int, bool, float]:
            return -PEERS[self.peers[session]], session not in surplus, self.stepped[session]

        idle = [order(each) for each in victims if self.idle(each)]
        spared = [order(each) for each in candidates if each not in victims]
        assert idle == sorted(idle)
        assert not idle or not spared or idle[-1] <= min(spared)
        active = [self.claim(each, surplus) for each in victims[len(idle) :]]
        if active:  # only after all that are idle, weakest first, and weaker than whom they give way to
            assert not spared
            assert active == sorted(active, reverse=True)
            assert active[-1] > self.claim(session, surplus)
            others = {each for each in self.peers if self.held[each] and not self.idle(each)} - {session, *victims}
            if session in surplus:
                others = {each for each in others if self.peers[each] == self.peers[session]}
            assert all(self.claim(each, surplus) < active[-1] for each in others)

    def claim(self, session: bytes, surplus: set[bytes]) -> tuple[Priority, bool, int]:
        return PEERS[self.peers[session]], session in surplus, int(session)

    def surplus(self, session: bytes, wanted: int) -> set[bytes]:
        found = set()
        for peer in PEERS:
            theirs = [each for each in self.peers if self.peers[each] == peer and each not in self.ended]
            held = [wanted if each == session else self.held[each] for each in theirs]
            found |= {each for number, each in enumerate(theirs) if number and sum(held[: number + 1]) > 150}
        return found

    def idle(self, session: bytes) -> bool:
        resting = self.now - self.stepped[session] >= IDLE_SECONDS
        return resting and self.schedule.activity(session) is Activity.IDLE

    @rule()
    def batch_done(self) -> None:
        for session in self.running:
            self.schedule.done(session)
        self.running.clear()

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.peers))))

    def end(self, session: bytes) -> None:
        if session in self.peers and session not in self.running:
            self.schedule.cancel(session)
            self.budget.release(session, self.now)
            del self.peers[session], self.tokens[session], self.held[session], self.stepped[session]

    @invariant()
    def the_budget_holds(self) -> None:
        statistics = self.budget.statistics()
        assert statistics.held == sum(self.held.values()) == 300 - self.budget.free
        assert 0 <= statistics.held <= 300
        assert statistics.sessions == len(self.peers)
        assert self.budget.free <= self.budget.left(self.now) <= 300

    def teardown(self) -> None:
        """Nothing stays promised."""
        self.batch_done()
        for session in list(self.peers):
            self.end(session)
        assert (self.budget.free, self.budget.sessions) == (300, 0)
        assert not self.budget._doomed
        assert self.schedule.waiting_steps == 0


TestAnyServer = AnyServer.TestCase
TestAnyServer.settings = settings(stateful_step_count=80, deadline=None)


@dataclass
class Client:
    """One that generates until it has its tokens, and begins again with all it has when its session was given up."""

    name: str
    peer: str
    wanted: int
    got: int = 0
    session: bytes | None = None
    held: int = 0
    again: float = 0.0
    tries: int = 0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(PEERS)), st.integers(1, 250)), min_size=1, max_size=7),
    st.integers(1, 4),
)
@example([("a", tokens) for tokens in (159, 159, 234, 230, 215, 215, 229)], 4)  # nearly all the cache, in turn
def test_whoever_is_patient_gets_to_its_end(demands: list[tuple[str, int]], pipelined: int) -> None:
    """However much more is wanted than there is, and with batches that begin before the last has ended."""
    schedule: Schedule[None] = Schedule(batch_tokens=64)
    budget = CacheBudget(256, schedule.activity)
    clients = [Client(f"{number}", peer, wanted) for number, (peer, wanted) in enumerate(demands)]
    of_session: dict[bytes, Client] = {}
    under_way: list[list[Chunk[None]]] = []
    now = 0.0

    def gives_up(session: bytes, seconds: float) -> None:
        schedule.cancel(session)
        budget.release(session, now)
        client = of_session.pop(session)
        client.session, client.held, client.again = None, 0, now + seconds

    def room(chunk: Chunk[None]) -> bool:
        answer = budget.reserve(chunk.step.session, chunk.end, now)
        for session in answer.evicted:
            ended[session] = 1.0
        if answer.refused is not None:
            ended[chunk.step.session] = answer.refused.retry_after_seconds or 1.0
        return answer.granted

    # One after the other they take a turn, or as many as are pipelined, for each token; and some is done twice.
    for _ in range(2000 + 4 * pipelined * sum(wanted for _, wanted in demands)):
        now += 0.5
        for client in clients:
            if client.session is None and client.got < client.wanted and now >= client.again:
                session = f"{client.name}-{client.tries}".encode()
                client.tries += 1
                busy = budget.open(
                    session,
                    client.peer,
                    priority=PEERS[client.peer],
                    wanted_tokens=client.wanted,
                    cost=partial(slab_tokens, first=16),
                    now=now,
                )
                if busy is None:
                    client.session = session
                    of_session[session] = client
                else:
                    assert busy.retry_after_seconds is not None
                    client.again = now + busy.retry_after_seconds
            if client.session is not None and schedule.activity(client.session) is Activity.IDLE:
                tokens = client.got + 1 - client.held  # the next token, or all again
                step = Pending(client.session, client.peer, client.held, (tokens,), PEERS[client.peer], now, None)
                assert schedule.add(step) is None
        ended: dict[bytes, float] = {}
        under_way.append(schedule.next_batch(room))
        for session, seconds in ended.items():
            gives_up(session, seconds)
        if len(under_way) >= pipelined:
            for chunk in under_way.pop(0):
                schedule.done(chunk.step.session)
                client = of_session[chunk.step.session]
                client.held = chunk.end
                client.got = max(client.got, client.held)
                if client.got == client.wanted:
                    gives_up(chunk.step.session, 0.0)
        if all(client.got == client.wanted for client in clients):
            assert budget.free == 256
            return
    raise AssertionError(f"{[client.got for client in clients]} of {[client.wanted for client in clients]}")
