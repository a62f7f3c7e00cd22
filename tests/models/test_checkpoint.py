"""Checkpoints in folders: each part reads its own tensors and no others, and what is broken is named."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from support.tiny_llama import BLOCKS, save_tiny_llama
from swarmnode.errors import BadInput, BadRange, CheckpointBroken, FamilyNotCertified, ModelNotFound
from swarmnode.models import weights
from swarmnode.models.checkpoint import Checkpoint, open_checkpoint
from swarmnode.models.progress import ProgressEvent

IDS = torch.tensor([[5, 9, 33, 2, 17]])
SMALL_SHARD = "40KB"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors that were read."""
    names: list[str] = []
    stock = weights.Reading.done

    def note(reading: weights.Reading, name: str, size: int) -> None:
        names.append(name)
        stock(reading, name, size)

    monkeypatch.setattr(weights.Reading, "done", note)
    return names


def logits_in_parts(checkpoint: Checkpoint, cuts: list[int], dtype: torch.dtype | None = None) -> torch.Tensor:
    ends = checkpoint.load_ends(dtype=dtype)
    hidden = ends.embed(IDS, 0)
    for start, end in itertools.pairwise(cuts):
        span = checkpoint.load_span(start, end, dtype=dtype)
        hidden = span.step(span.open_cache(), hidden, 0)
    return ends.logits(hidden, last_only=False)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", SMALL_SHARD])
@pytest.mark.parametrize("pickled", [False, True])
def test_the_parts_make_up_the_model(tmp_path: Path, tied: bool, shard: str, pickled: bool) -> None:
    model = save_tiny_llama(tmp_path / "m", tied=tied, shard=shard, pickled=pickled)
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    assert (checkpoint.name, checkpoint.family, checkpoint.num_blocks) == ("m", "llama", BLOCKS)
    assert (checkpoint.hidden_size, checkpoint.context_tokens, checkpoint.dtype) == (32, 128, torch.float32)
    assert checkpoint.eos_ids == {2}
    with torch.inference_mode():
        assert torch.equal(logits_in_parts(checkpoint, [0, 1, 4]), model(IDS).logits)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_converted_as_transformers_converts_them(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype | None
) -> None:
    save_tiny_llama(tmp_path / "m", dtype=stored)
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    assert checkpoint.dtype == stored
    expected = LlamaForCausalLM.from_pretrained(tmp_path / "m", dtype=wanted or stored).eval()
    span = checkpoint.load_span(1, 3, dtype=wanted)
    assert span.dtype == (wanted or stored)
    with torch.inference_mode():
        assert torch.equal(logits_in_parts(checkpoint, [0, 4], wanted), expected(IDS).logits.float())


def test_a_span_reads_its_own_tensors_only(tmp_path: Path, read: list[str]) -> None:
    save_tiny_llama(tmp_path / "m", shard=SMALL_SHARD)
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    assert read == []
    events: list[ProgressEvent] = []
    span = checkpoint.load_span(1, 3, progress=events.append)
    assert {name.split(".")[2] for name in read} == {"1", "2"}
    assert len(read) == len(set(read)) == 2 * 9
    assert checkpoint.part_bytes(1, 3) == events[-1].total == events[-1].done
    # A span holds its blocks' weights and hardly anything else.
    assert 0 <= span.weight_bytes - (checkpoint.part_bytes(1, 3) or 0) < 1024


@pytest.mark.parametrize("tied", [False, True])
def test_the_client_reads_the_ends_only(tmp_path: Path, read: list[str], tied: bool) -> None:
    save_tiny_llama(tmp_path / "m", shard=SMALL_SHARD, tied=tied)
    open_checkpoint(str(tmp_path / "m")).load_ends()
    expected = {"model.embed_tokens.weight", "model.norm.weight"} | (set() if tied else {"lm_head.weight"})
    assert set(read) == expected


def test_a_server_needs_only_the_shards_of_its_blocks(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m", shard=SMALL_SHARD)
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for tensor, file in index.items() if tensor.startswith("model.layers.3.")}
    others = set(index.values()) - needed
    assert needed
    assert others
    opened = open_checkpoint(str(tmp_path / "m"))
    for file in others:
        (tmp_path / "m" / file).unlink()
    opened.load_span(3, 4)
    with pytest.raises(CheckpointBroken, match=r"model-0000.*\.safetensors is missing"):
        checkpoint.load_ends()


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m", shard=SMALL_SHARD)
    events: list[ProgressEvent] = []
    open_checkpoint(str(tmp_path / "m")).load_span(0, 4, progress=events.append)
    assert {(event.stage, event.what, event.unit) for event in events} == {("load", "blocks 0:4", "bytes")}
    done = [event.done for event in events]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, events[-1].total)


@pytest.mark.parametrize("blocks", [(0, 5), (4, 5), (2, 2), (3, 1), (-1, 2)])
def test_blocks_that_do_not_exist_are_refused_with_the_range_there_is(tmp_path: Path, blocks: tuple[int, int]) -> None:
    save_tiny_llama(tmp_path / "m")
    with pytest.raises(BadRange, match="blocks 0:4"):
        open_checkpoint(str(tmp_path / "m")).load_span(*blocks)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def scribble(path: Path) -> None:
    path.write_bytes(b"not what it was" * 100)


def not_an_object(path: Path) -> None:
    path.write_text("[1, 2]")


@pytest.mark.parametrize(
    ("shard", "file", "damage"),
    [
        ("5GB", "config.json", Path.unlink),
        ("5GB", "config.json", scribble),
        ("5GB", "config.json", not_an_object),
        ("5GB", "model.safetensors", cut_off),
        ("5GB", "model.safetensors", scribble),
        (SMALL_SHARD, "model.safetensors.index.json", scribble),
        (SMALL_SHARD, "model.safetensors.index.json", not_an_object),
        (SMALL_SHARD, "model-00002-of-00004.safetensors", Path.unlink),
        (SMALL_SHARD, "model-00002-of-00004.safetensors", cut_off),
        (SMALL_SHARD, "model-00002-of-00004.safetensors", scribble),
    ],
)
def test_one_clear_error_names_the_broken_file(
    tmp_path: Path, shard: str, file: str, damage: Callable[[Path], None]
) -> None:
    save_tiny_llama(tmp_path / "m", shard=shard)
    assert len(list((tmp_path / "m").glob("model-*"))) in (0, 4)
    damage(tmp_path / "m" / file)
    with pytest.raises(CheckpointBroken) as caught:
        open_checkpoint(str(tmp_path / "m")).load_span(0, 4)
    assert str(tmp_path / "m" / file) in caught.value.message
    assert caught.value.hint


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    checkpoint = open_checkpoint(str(tmp_path / "m"))

    def shrink(event: ProgressEvent) -> None:
        if event.done == 0:
            with file.open("rb+") as open_file:
                open_file.truncate(10_000)

    with pytest.raises(CheckpointBroken, match=r"model\.safetensors cannot be read: it became shorter"):
        checkpoint.load_span(0, 4, progress=shrink)


def test_an_index_that_promises_too_much(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m", shard=SMALL_SHARD)
    path = tmp_path / "m" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00004.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointBroken, match=r"model-00001-of-00004.safetensors lacks model.norm.weight"):
        open_checkpoint(str(tmp_path / "m")).load_ends()
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointBroken, match="norm"):
        open_checkpoint(str(tmp_path / "m")).load_ends()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", ".x.safetensors", "x.py"])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    save_tiny_llama(tmp_path / "m", shard=SMALL_SHARD)
    path = tmp_path / "m" / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(CheckpointBroken, match="no weights file beside it"):
        open_checkpoint(str(tmp_path / "m"))


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m", pickled=True)
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (witness,))

    torch.save({"model.norm.weight": Evil()}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(CheckpointBroken, match=r"pytorch_model\.bin holds something else than weights"):
        open_checkpoint(str(tmp_path / "m"))
    assert not witness.exists()
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(CheckpointBroken, match=r"pytorch_model\.bin"):
        open_checkpoint(str(tmp_path / "m"))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(CheckpointBroken, match="holds no weights"):
        open_checkpoint(str(tmp_path / "m"))


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m")
    with pytest.raises(CheckpointBroken, match=r"tokenizer in .*/m cannot be opened"):
        open_checkpoint(str(tmp_path / "m")).tokenizer()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model_type": "bert"}, FamilyNotCertified, "'bert'"),
        ({"model_type": "no_such_family"}, FamilyNotCertified, "'no_such_family' is not known"),
        ({"model_type": None}, CheckpointBroken, "names no model_type"),
        ({"hidden_size": "wide"}, CheckpointBroken, "config.json is no valid config of family 'llama'"),
    ],
)
def test_models_that_cannot_be_served_are_refused_by_name(
    tmp_path: Path, change: dict[str, object], error: type[Exception], says: str
) -> None:
    save_tiny_llama(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=says):
        open_checkpoint(str(tmp_path / "m"))


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 40}))
    with pytest.raises(CheckpointBroken, match="shape"):
        open_checkpoint(str(tmp_path / "m")).load_span(0, 1)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("/no/such/folder", "no file or folder /no/such/folder"),
        ("./gone", "no file or folder gone"),
        ("model.gguf", "no file or folder model.gguf"),
        ("just-a-name", "no model 'just-a-name'"),
        ("a/b/c", "no model 'a/b/c'"),
        ("", "no model ''"),
        ("x" * 5000, "cannot be opened"),
    ],
)
def test_what_is_not_there_is_named(model: str, says: str) -> None:
    with pytest.raises(ModelNotFound, match=says) as caught:
        open_checkpoint(model)
    assert caught.value.hint


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadInput, match=r"notes.txt is a file, but no .gguf file"):
        open_checkpoint(str(tmp_path / "notes.txt"))


def test_a_local_folder_has_no_revisions(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m")
    with pytest.raises(BadInput, match="Revision 'v2'"):
        open_checkpoint(str(tmp_path / "m"), revision="v2")


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}')
    with pytest.raises(CheckpointBroken, match=r"tokenizer in .*/m cannot be opened"):
        open_checkpoint(str(tmp_path / "m")).tokenizer()


def test_several_threads_may_load_at_once(tmp_path: Path) -> None:
    """transformers patches what threads share while it builds a model; tied heads are where that shows."""
    save_tiny_llama(tmp_path, tied=True)
    checkpoint = open_checkpoint(str(tmp_path))

    def load(_: int) -> int:
        return checkpoint.load_ends(dtype=torch.float32).vocab_size

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(load, range(64))) == [checkpoint.load_ends().vocab_size] * 64
