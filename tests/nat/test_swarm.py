"""A swarm whose servers are each behind a NAT: direct where NATs allow it, relayed where not, the same text always."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.plain import plain_answer
from support.programs import Program, first_to_log
from support.tiny_folder import BLOCKS, make_tiny_model
from swarmnode.node.bench.natlab import PORT, Kind, Lab, Place, nat_lab

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(400)]

PROMPT = "The quick brown fox"
NEW_TOKENS = 64
LISTEN = "/ip4/{}/udp/{}/quic-v1"
PUNCHED, RELAYED = "is connected directly now", "stays on the relay"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("nat") / "tiny-llama", seed=5)


@pytest.fixture(scope="session")
def text(model: Path) -> str:
    """What plain transformers makes of the prompt."""
    from swarmnode.models.checkpoint import open_checkpoint

    tokenizer = open_checkpoint(str(model)).tokenizer()
    answer: str = tokenizer.decode(plain_answer(str(model), tokenizer(PROMPT)["input_ids"], NEW_TOKENS))
    assert len(set(answer)) > 4, "the text is to depend on what is computed"
    return answer


class Swarm:
    """A bootstrap node in public, and half of the model behind each NAT."""

    def __init__(self, lab: Lab, model: Path, stack: ExitStack) -> None:
        self.lab = lab
        self._model = str(model)
        self._stack = stack
        self.boot = self._start(lab.boot, "bootstrap", "--listen", LISTEN.format(lab.boot.host, PORT))
        self._address = str(self.boot.wait_for("listening")["addrs"][0])
        self.a = self._serve(lab.a, f"0:{BLOCKS // 2}")
        self.b = self._serve(lab.b, f"{BLOCKS // 2}:{BLOCKS}")
        for server in (self.a, self.b):
            server.wait_for("ready")

    def status(self) -> list[dict[str, Any]]:
        """What is told of the two servers, in the order of their blocks."""
        asking = self._start(self.lab.client, "status", "--join", self._address)
        assert asking.finish() == 0, asking.log
        (status,) = [event for event in asking.events if event["event"] == "status"]
        servers: list[dict[str, Any]] = status["models"][0]["servers"]
        return sorted(servers, key=lambda each: each["blocks"])

    def generate(self) -> str:
        """The swarm's text for a client in public."""
        words = ["generate", "--model", self._model, "--prompt", PROMPT, "--max-new-tokens", str(NEW_TOKENS)]
        exact = ["--temperature", "0", "--compression", "lossless", "--dtype", "float32"]
        asking = self._start(self.lab.client, *words, *exact, "--join", self._address)
        assert asking.finish() == 0, asking.log
        return "".join(event["text"] for event in asking.events if event["event"] == "token")

    def story(self) -> str:
        said = {"boot": self.boot, "a": self.a, "b": self.b}
        return "\n".join(f"-- {name}\n{program.log[-6000:]}" for name, program in said.items())

    def _serve(self, place: Place, blocks: str) -> Program:
        where = ["--join", self._address, "--listen", LISTEN.format("0.0.0.0", PORT)]
        return self._start(place, "serve", self._model, "--blocks", blocks, "--dtype", "float32", *where)

    def _start(self, place: Place, *words: str) -> Program:
        return self._stack.enter_context(Program(*words, "--no-mdns", "--debug", prefix=place.prefix))


@pytest.mark.parametrize(
    ("kinds", "ends"),
    [
        (("restricted", "restricted"), PUNCHED),
        (("symmetric", "symmetric"), RELAYED),
        (("restricted", "symmetric"), RELAYED),
        (("cone", "cone"), None),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_the_text_is_the_same_whatever_is_between(
    kinds: tuple[Kind, Kind], ends: str | None, model: Path, text: str
) -> None:
    with nat_lab(*kinds) as lab, ExitStack() as stack:
        swarm = Swarm(lab, model, stack)
        assert swarm.generate() == text, swarm.story()
        servers = swarm.status()
        assert [server["relayed"] for server in servers] == [kind != "cone" for kind in kinds]
        if ends is None:
            return  # both can be dialled: nobody had to punch
        # One of the two came to the other through the relay, and the other tried to punch, three times if need be.
        first, second = (server["peer_id"] for server in servers)
        told = {swarm.a: f"{second}.*({{}})", swarm.b: f"{first}.*({{}})"}
        first_to_log({program: said.format(ends) for program, said in told.items()})
        if ends == RELAYED:
            for program, said in told.items():
                assert not re.search(said.format(PUNCHED), program.log), swarm.story()
