"""Models of the hub, against a hub of our own, in fresh processes as the hub's settings are read at start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import COMMIT, Hub, serve_hub
from support.tiny_adapter import save_adapter
from support.tiny_llama import save_tiny_llama
from swarmnode.models.tiny import tiny_config
from swarmnode.models.tiny_checkpoint import tiny_checkpoint

BIG = bytes(range(256)) * 400
REPO = "org/model"

FETCH = """
import json, sys
from swarmnode.errors import SwarmnodeError
from swarmnode.models.hub import HubFiles
events = []
note = lambda event: events.append((event.what, event.done, event.total))
try:
    files = HubFiles(sys.argv[1], sys.argv[2] or None, note)
    paths = files.fetch_all(sys.argv[3:])
    told = {"commit": files.commit, "sizes": [path.stat().st_size for path in paths], "paths": list(map(str, paths))}
except SwarmnodeError as error:
    told = {"code": error.code, "message": error.message, "hint": error.hint}
print(json.dumps({**told, "events": events, "torch": "torch" in sys.modules}))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        hub.files[REPO] = {"config.json": b"{}", "model.safetensors": BIG}
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "hf"


def run(program: str, hub: Hub, home: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), **variables}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def fetch(hub: Hub, home: Path, *files: str, repo: str = REPO, revision: str = "", **variables: str) -> dict[str, Any]:
    return run(FETCH, hub, home, repo, revision, *files, **variables)


def test_files_come_with_progress_and_stay_in_the_hubs_cache(hub: Hub, home: Path) -> None:
    told = fetch(hub, home, "config.json", "model.safetensors")
    assert told["commit"] == COMMIT
    assert told["sizes"] == [2, len(BIG)]
    assert Path(told["paths"][1]).read_bytes() == BIG
    assert Path(told["paths"][1]) == home / "hub" / "models--org--model" / "snapshots" / COMMIT / "model.safetensors"
    assert told["events"][0] == ["config.json", 0, 2]
    assert told["events"][-1] == ["model.safetensors", len(BIG), len(BIG)]
    assert told["torch"] is False
    hub.requests.clear()
    assert fetch(hub, home, "config.json", "model.safetensors")["events"] == []
    # The second time only the revision is looked up.
    assert [asked.path for asked in hub.requests if REPO in asked.path] == ["/api/models/org/model/revision/main"]


@pytest.mark.parametrize("revision", ["", "main", "v1", COMMIT])
def test_revisions_lead_to_their_commit(hub: Hub, home: Path, revision: str) -> None:
    assert fetch(hub, home, "config.json", revision=revision)["commit"] == COMMIT


def test_a_revision_that_is_not_there(hub: Hub, home: Path) -> None:
    told = fetch(hub, home, revision="v9")
    assert (told["code"], told["message"]) == ("model-not-found", "org/model has no revision v9.")
    assert f"{hub.endpoint}/org/model" in told["hint"]


@pytest.mark.parametrize("repo", ["org/other", "org/hidden"])
def test_a_model_that_is_missing_or_private(hub: Hub, home: Path, repo: str) -> None:
    hub.files["org/hidden"] = {"config.json": b"{}"}
    hub.private.add("org/hidden")
    told = fetch(hub, home, "config.json", repo=repo)
    assert told["code"] == "model-not-found"
    assert repo in told["message"]
    assert "HF_TOKEN" in told["hint"]


def test_a_gated_model_explains_itself_and_a_token_opens_it(hub: Hub, home: Path) -> None:
    hub.gated.add(REPO)
    for variables in ({}, {"HF_TOKEN": "hf_other"}):
        told = fetch(hub, home, "config.json", **variables)
        assert told["code"] == "model-gated"
        assert "org/model is gated" in told["message"]
        assert f"{hub.endpoint}/org/model" in told["hint"]
        assert "HF_TOKEN" in told["hint"]
    assert fetch(hub, home, "config.json", "model.safetensors", HF_TOKEN="hf_good")["sizes"] == [2, len(BIG)]


def test_a_private_model_opens_with_its_token(hub: Hub, home: Path) -> None:
    hub.private.add(REPO)
    assert fetch(hub, home, "config.json", HF_TOKEN="hf_good")["sizes"] == [2]


def test_a_file_that_is_not_there(hub: Hub, home: Path) -> None:
    told = fetch(hub, home, "gone.json")
    assert told["code"] == "checkpoint-broken"
    assert told["message"] == f"org/model at {COMMIT[:12]} has no file gone.json."


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, home: Path) -> None:
    hub.breaks, hub.break_bytes = 2, 30_000
    told = fetch(hub, home, "model.safetensors", "config.json")
    assert Path(told["paths"][0]).read_bytes() == BIG
    ranges = [asked.range for asked in hub.requests if asked.method == "GET" and asked.path.startswith("/cdn/")]
    assert ranges == [None, "bytes=30000-", "bytes=60000-"]
    done = [done for what, done, _ in told["events"] if what == "model.safetensors"]
    assert done == sorted(done)


def test_a_download_that_failed_goes_on_in_the_next_process(hub: Hub, home: Path) -> None:
    hub.breaks, hub.break_bytes = 1, 40_000
    leave = "import os, swarmnode.models.download as d; d.time.sleep = lambda seconds: os._exit(0)\n"
    program = leave.replace("os._exit(0)", "(print('{}', flush=True), os._exit(0))") + FETCH
    assert run(program, hub, home, REPO, "", "model.safetensors") == {}
    hub.requests.clear()
    told = fetch(hub, home, "model.safetensors")
    assert Path(told["paths"][0]).read_bytes() == BIG
    assert [asked.range for asked in hub.requests if asked.path.startswith("/cdn/")] == ["bytes=40000-"]
    assert [path.name for path in home.rglob("*.swarmnode")] == []


def test_a_server_that_knows_no_ranges(hub: Hub, home: Path) -> None:
    hub.breaks, hub.break_bytes, hub.ignore_ranges = 1, 30_000, True
    told = fetch(hub, home, "model.safetensors")
    assert Path(told["paths"][0]).read_bytes() == BIG


def test_a_connection_that_always_breaks_ends_in_an_error(hub: Hub, home: Path) -> None:
    hub.breaks, hub.break_bytes = 100, 0
    quick = "import swarmnode.models.download as d; d.PAUSE_SECONDS = 0\n"
    told = run(quick + FETCH, hub, home, REPO, "", "model.safetensors")
    assert told["code"] == "hub-unreachable"
    assert "model.safetensors of org/model" in told["message"]


def test_what_comes_over_damaged_is_refused_and_not_kept(hub: Hub, home: Path) -> None:
    hub.damage = True
    told = fetch(hub, home, "model.safetensors")
    assert told["code"] == "checkpoint-broken"
    assert "model.safetensors" in told["message"]
    assert "SHA-256" in told["message"]
    hub.damage = False
    assert fetch(hub, home, "model.safetensors")["sizes"] == [len(BIG)]


@pytest.mark.parametrize(("status", "code"), [(500, "hub-unreachable"), (429, "hub-unreachable"), (403, "model-gated")])
def test_a_hub_that_fails(hub: Hub, home: Path, status: int, code: str) -> None:
    hub.status = status
    told = fetch(hub, home, "config.json")
    assert told["code"] == code
    assert str(status) in told["message"]
    assert told["hint"]


def test_nobody_listening(hub: Hub, home: Path) -> None:
    hub.endpoint = "http://127.0.0.1:9"
    told = fetch(hub, home, "config.json")
    assert told["code"] == "hub-unreachable"
    assert "http://127.0.0.1:9 cannot be reached for org/model" in told["message"]
    assert "HF_ENDPOINT" in told["hint"]


def test_the_cache_serves_when_the_hub_does_not_answer(hub: Hub, home: Path) -> None:
    fetch(hub, home, "config.json")
    for variables in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        told = fetch(hub, home, "config.json", **variables)
        assert (told["commit"], told["sizes"]) == (COMMIT, [2])
        told = fetch(hub, home, "model.safetensors", **variables)
        assert told["code"] == "hub-unreachable"
        assert "model.safetensors of org/model" in told["message"]


def test_offline_without_the_model(hub: Hub, home: Path) -> None:
    told = fetch(hub, home, "config.json", HF_HUB_OFFLINE="1")
    assert told["code"] == "hub-unreachable"
    assert told["message"] == f"HF_HUB_OFFLINE is set, and org/model is not in the cache {home / 'hub'}."
    assert hub.requests == []


def test_a_full_disk_is_noticed_before_the_download(hub: Hub, home: Path) -> None:
    tight = "import swarmnode.models.cache_folder as c; c.ROOM_TO_SPARE_BYTES = 10**18\n"
    told = run(tight + FETCH, hub, home, REPO, "", "model.safetensors")
    assert told["code"] == "disk-full"
    assert "The download of org/model needs 0 MB" in told["message"]
    assert hub.fetched(REPO) == set()


def test_a_disk_that_fills_up_during_the_download(hub: Hub, home: Path) -> None:
    # A file may not grow beyond this many bytes: the system's own way to make a write fail half-way.
    limited = (
        "import errno, resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "errno.EDQUOT = errno.EFBIG\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    )
    told = run(limited + FETCH, hub, home, REPO, "", "model.safetensors")
    assert told["code"] == "disk-full"
    assert str(home / "hub" / "models--org--model") in told["message"]
    assert fetch(hub, home, "model.safetensors")["sizes"] == [len(BIG)]


LOAD = """
import json, sys, torch
from swarmnode.models.checkpoint import open_checkpoint
checkpoint = open_checkpoint("org/model")
span = checkpoint.load_span(3, 4)
print(json.dumps({"name": checkpoint.name, "revision": checkpoint.revision, "digest": checkpoint.digest.hex(),
    "blocks": checkpoint.num_blocks, "bytes": span.weight_bytes}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["40KB", "5GB"])
def test_only_the_shards_of_the_span_are_downloaded(hub: Hub, home: Path, tmp_path: Path, shard: str) -> None:
    save_tiny_llama(tmp_path / "m", shard=shard)
    hub.files[REPO] = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    hub.files[REPO]["README.md"] = b"# model"
    told = run(LOAD, hub, home)
    assert (told["name"], told["revision"], told["blocks"]) == (REPO, COMMIT, 4)
    if shard == "5GB":
        expected = {"config.json", "model.safetensors"}
    else:
        index = json.loads(hub.files[REPO]["model.safetensors.index.json"])["weight_map"]
        shards = {file for tensor, file in index.items() if ".layers.3." in tensor}
        assert len(shards) < len(set(index.values()))
        expected = {"config.json", "model.safetensors.index.json", *shards}
    assert hub.fetched(REPO) == expected
    assert run(LOAD, hub, home, HF_HUB_OFFLINE="1") == told


OPEN_ADAPTER = """
import json, sys
from swarmnode.errors import SwarmnodeError
from swarmnode.models.adapters import open_adapter
from swarmnode.models.tiny import tiny_config
try:
    told = {"digest": open_adapter("poet", sys.argv[1], tiny_config("llama")).digest.hex()}
except SwarmnodeError as error:
    told = {"code": error.code, "message": error.message}
print(json.dumps(told))
"""


@pytest.mark.in_turns
def test_an_adapter_comes_from_the_hub_too_and_is_there_without_it(hub: Hub, home: Path, tmp_path: Path) -> None:
    with tiny_checkpoint(tiny_config("llama")) as tiny:
        folder = save_adapter(tiny.whole, tmp_path / "poet", ["q_proj"])
    hub.files["org/poet"] = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".md"}
    local = run(OPEN_ADAPTER, hub, home, str(folder))
    assert local["digest"]
    assert run(OPEN_ADAPTER, hub, home, "org/poet") == local
    assert hub.fetched("org/poet") == {"adapter_config.json", "adapter_model.safetensors"}
    assert run(OPEN_ADAPTER, hub, home, "org/poet", HF_HUB_OFFLINE="1") == local
    assert run(OPEN_ADAPTER, hub, home, "org/none")["code"] == "model-not-found"
