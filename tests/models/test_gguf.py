"""GGUF files become ordinary model folders, once; the bundled model is one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from support.tiny_gguf import BLOCKS, ENDS, write_tiny_gguf
from swarmnode.errors import BadInput, CheckpointBroken, DiskFull, ModelNotFound
from swarmnode.models import bundled as bundled_room
from swarmnode.models import cache_folder, gguf
from swarmnode.models.chat import chat_ids
from swarmnode.models.checkpoint import Checkpoint, open_checkpoint
from swarmnode.models.progress import ProgressEvent


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "bundled" not in request.fixturenames:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_tiny_gguf(tmp_path / "tiny-q8.gguf")
    return tmp_path / "tiny-q8.gguf"


def test_the_folder_is_an_ordinary_model_folder(file: Path) -> None:
    events: list[ProgressEvent] = []
    checkpoint = open_checkpoint(str(file), progress=events.append)
    assert (checkpoint.name, checkpoint.family, checkpoint.num_blocks) == ("tiny-q8", "llama", BLOCKS)
    assert (checkpoint.context_tokens, checkpoint.dtype) == (512, torch.float32)
    assert checkpoint.eos_ids == set(ENDS)
    assert {event.stage for event in events} == {"convert"}
    assert events[-1].done == events[-1].total
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder).eval()
    expected = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    stored = load_file(checkpoint.folder / "model.safetensors")
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(stored[name], tensor), name
    assert model.generation_config.eos_token_id == list(ENDS)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    ends = checkpoint.load_ends()
    span = checkpoint.load_span(0, BLOCKS)
    with torch.inference_mode():
        out = ends.logits(span.step(span.open_cache(), ends.embed(ids, 0), 0), last_only=False)
        assert torch.equal(out, model(ids).logits)


def test_tokenizer_and_chat_template_come_along(file: Path) -> None:
    checkpoint = open_checkpoint(str(file))
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode(tokenizer("Grüße, 世界!")["input_ids"]) == "Grüße, 世界!"
    assert tokenizer.decode(chat_ids(tokenizer, [{"role": "user", "content": "hi"}])) == "user: hi\n"
    assert tokenizer("<|turn|>")["input_ids"] == [ENDS[1]]
    assert AutoTokenizer.from_pretrained(checkpoint.folder).model_max_length == 512


def test_converted_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_checkpoint(str(file))

    def never(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(gguf, "_convert", never)
    second = open_checkpoint(str(file))
    assert (first.folder, first.revision, first.digest) == (second.folder, second.revision, second.digest)


def test_other_content_is_another_model(file: Path, tmp_path: Path) -> None:
    first = open_checkpoint(str(file))
    (tmp_path / "again").mkdir()
    write_tiny_gguf(tmp_path / "again" / "tiny-q8.gguf", seed=1)
    second = open_checkpoint(str(tmp_path / "again" / "tiny-q8.gguf"))
    assert first.name == second.name
    assert first.folder != second.folder
    assert first.revision != second.revision
    assert first.digest != second.digest


def test_large_models_become_bfloat16(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "EXACT_BYTES", 1000)
    assert open_checkpoint(str(file)).dtype == torch.bfloat16


OPEN = """
import sys
from swarmnode.models.checkpoint import open_checkpoint
events = []
checkpoint = open_checkpoint(sys.argv[1], progress=events.append)
print(checkpoint.digest.hex(), len(events) > 0)
"""


@pytest.mark.slow
def test_processes_that_want_it_at_once_convert_it_once(file: Path) -> None:
    programs = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(file)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    told = [program.communicate(timeout=280)[0].split() for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0]
    assert len({digest for digest, _ in told}) == 1
    assert sorted(converted for _, converted in told) == ["False", "False", "True"]


def test_every_cut_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    for length in (0, 3, 10, 100, 3000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointBroken, match=r"tiny-q8\.gguf is (cut off|no readable GGUF file)"):
            open_checkpoint(str(file))


def test_what_is_no_gguf(file: Path) -> None:
    file.write_bytes(b"PK" * 1000)
    with pytest.raises(CheckpointBroken, match=r"tiny-q8\.gguf is no readable GGUF file"):
        open_checkpoint(str(file))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", leave_out="blk.1.ffn_up.weight")
    with pytest.raises(CheckpointBroken, match=r"m\.gguf lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        open_checkpoint(str(tmp_path / "m.gguf"))
    assert list((tmp_path / "cache").rglob("config.json")) == []


@pytest.mark.parametrize("architecture", ["qwen35", "bert", "no-such"])
def test_an_architecture_that_cannot_be_converted_is_named(tmp_path: Path, architecture: str) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", architecture=architecture)
    with pytest.raises(BadInput, match=architecture) as caught:
        open_checkpoint(str(tmp_path / "m.gguf"))
    assert "safetensors" in caught.value.hint


def test_a_full_disk_is_noticed_before_the_conversion(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folder, "ROOM_TO_SPARE_BYTES", 10**18)
    with pytest.raises(DiskFull, match=r"The conversion of .*tiny-q8\.gguf needs"):
        open_checkpoint(str(file))


def test_the_bundled_model_is_there_and_answers_to_its_name(bundled: Checkpoint) -> None:
    assert (bundled.name, bundled.num_blocks, bundled.hidden_size) == ("SmolLM2-135M-Instruct", 30, 576)
    assert bundled.family == "llama"
    assert bundled.eos_ids == {2}
    assert json.loads((bundled.folder / "config.json").read_text())["tie_word_embeddings"] is True


def test_its_package_is_found_without_running_it() -> None:
    program = (
        "import sys; from swarmnode.models.bundled import bundled_gguf; "
        "print(bundled_gguf().stat().st_size, any('llm' in name for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["98362432", "False"]


def test_without_the_package_the_hubs_copy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled_room, "PACKAGE", "no_such_package")
    assert not bundled_room.has_bundled()
    with pytest.raises(ModelNotFound, match="SmolLM2-135M-Instruct is not installed") as caught:
        open_checkpoint("SmolLM2-135M-Instruct")
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in caught.value.hint
