"""A model's checkpoint opened by name: its config and identity, and the parts of it that a process loads.

The one door between the rest of the program and files, hubs and formats.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from swarmnode.errors import BadInput, BadRange, CheckpointBroken, FamilyNotCertified, ModelNotFound, OutOfMemory

from .adapters import Adapter, open_adapter_tensors
from .bundled import BUNDLED_NAME, bundled_gguf
from .cut import Part, build_part, hidden_size, num_blocks, part_tensor_names, quiet_transformers, text_config
from .devices import Placement, settle
from .ends import Ends
from .families import require_certified
from .identity import fingerprint, identity_digest
from .index import WeightsIndex, read_index
from .progress import Progress
from .quantised import Scheme
from .quantising import BlockFiles, fill_blocks
from .ready_made import method_of, quantizer_faults_named, require_loadable, without_quantisation
from .source import HUB_ID, FolderFiles, ModelFiles, read_json
from .span import Span
from .weights import open_tensors

__all__ = ["BUNDLED_NAME", "QUANTISED_DTYPE", "Checkpoint", "open_checkpoint"]

QUANTISED_DTYPE = torch.bfloat16
"""Of states and of what is not quantised, unless told: the only one for which CPUs have kernels that read few bits."""

MAX_SHOWN_CHARACTERS = 200
"""Of a name that is given back in an error."""

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
UNBOUNDED_CONTEXT_TOKENS = 1 << 20
"""For families without a stated limit (recurrent ones, ALiBi): something to bound a session by."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""All that tokenizers of the certified families are made of; each model has a few of them."""


class Checkpoint:
    """A model's files, known by config and index; weights are read by `load_span` and `load_ends` only.

    Attributes:
        name: hub id, folder name, GGUF file's stem, or the bundled model's name.
        revision: the hub's commit, or a fingerprint of local weights.
        digest: 32 bytes over config and weights index; peers with another one hold another model.
        folder: where the small files lie on this disk, an ordinary model folder.
        config: transformers' config of the whole model.
        family: its model type.
        num_blocks: how many blocks it has.
        hidden_size: width of the hidden state between blocks.
        context_tokens: how many tokens it was made for.
        dtype: the type its weights are stored in.
        quantisation: in what they come, when they come quantised; None else.
    """

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        config_path = files.fetch("config.json")
        self.folder = config_path.parent
        raw = read_json(config_path)
        self.config = _read_config(config_path, raw)
        require_certified(self.config)
        self.quantisation = method_of(self.config)
        self.family: str = self.config.model_type
        self.num_blocks = num_blocks(self.config)
        self.hidden_size = hidden_size(self.config)
        self.context_tokens = _context_tokens(self.config)
        self._index: WeightsIndex = read_index(files)
        self.dtype = self._stored_dtype()
        self.name = files.name
        self.revision = files.commit or fingerprint(files, self._index)
        self.digest = identity_digest(raw, self._index, self.revision, local=files.commit is None)

    def load_span(
        self,
        start: int,
        end: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | Placement = "cpu",
        quant: Scheme | None = None,
        adapters: Sequence[Adapter] = (),
        progress: Progress | None = None,
    ) -> Span:
        """Blocks `start:end`; only their files are downloaded and only their tensors read.

        Args:
            dtype: None is the checkpoint's own; with `quant`, bfloat16.
            device: where to put it; a `Placement` for several devices.
            quant: in what to keep the weights of linear layers; made at the first load and kept on disk for the next.
            adapters: those that sessions may choose.
            progress: told bytes downloaded and loaded.

        Raises:
            BadInput: these blocks have nothing to quantise, or come quantised in a way that cannot be loaded here, or
                their family does what cannot be done on several devices.
            BadRange: the model does not have these blocks.
            CheckpointBroken: a file is damaged or incomplete.
            DiskFull, HubUnreachable, ModelGated, ModelNotFound: a download failed.
            OutOfMemory: the device has no room.
        """
        if not 0 <= start < end <= self.num_blocks:
            raise BadRange(
                f"Blocks {start}:{end} are not in {self.name}, which has blocks 0:{self.num_blocks}.",
                hint=f"Choose a range inside 0:{self.num_blocks}; the end is not included.",
                span=(start, end),
            )
        with quiet_transformers():
            require_loadable(self.config, self.name)
        if quant is not None and self.quantisation is not None:
            raise BadInput(
                f"The weights of {self.name} are quantised already ({self.quantisation}).", hint="Leave --quant out."
            )
        placement = device if isinstance(device, Placement) else Placement.whole(device, end - start)
        dtype = dtype or (self.dtype if quant is None else QUANTISED_DTYPE)
        part, what = Part("span", start, end, quant), f"blocks {start}:{end}"
        first = placement.devices[0] if placement.is_plain else torch.device("cpu")
        model = self._load(part, what, dtype, first, progress)
        with self._room_for(what, placement):
            if quant is not None:
                fill_blocks(model, placement, BlockFiles(self.digest, quant, dtype), self._load_block, progress)
            for adapter in adapters:
                _adapt(model, adapter, progress)
            if placement.is_plain:
                return Span(model)
            settle(model, placement)
            return _tried(Span(model))

    def _load_block(self, index: int, dtype: torch.dtype) -> PreTrainedModel:
        """One block in the machine's memory."""
        return self._load(Part("span", index, index + 1), f"block {index}", dtype, "cpu", None)

    def load_ends(
        self,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Ends:
        """Everything that is not a block. Arguments and errors as for `load_span`."""
        part, what = Part("ends"), "the model's ends"
        plain = without_quantisation(self.config)
        names = [part_tensor_names(config, part, self._index.file_of) for config in (plain, self.config)]
        # Most often only blocks are quantised, so that who asks needs nothing to load them with.
        config = plain if names[0] == names[1] else self.config
        with quiet_transformers():
            require_loadable(config, self.name)
        return Ends(self._load(part, what, dtype, device, progress, config=config))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, without running code from the model. Raises CheckpointBroken."""
        for name in TOKENIZER_FILES:
            if self._files.has(name):
                self._files.fetch(name)
        try:
            return AutoTokenizer.from_pretrained(str(self.folder), config=self.config, trust_remote_code=False)
        except Exception as error:  # the tokenizers package raises nothing narrower
            raise CheckpointBroken(
                f"The tokenizer in {self._files.where} cannot be opened: {_first_line(error)}.",
                hint="Its files are missing or damaged: copy or download the model again.",
            ) from error

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """The token ids that end an answer; may be none."""
        given: object = None
        if self._files.has("generation_config.json"):
            path = self._files.fetch("generation_config.json")
            given = GenerationConfig.from_dict(read_json(path)).eos_token_id
        if given is None:
            given = getattr(text_config(self.config), "eos_token_id", None)
        if given is None:
            return frozenset()
        return frozenset(given) if isinstance(given, (list, tuple)) else frozenset((int(str(given)),))

    def part_bytes(self, start: int, end: int) -> int | None:
        """Bytes of blocks `start:end` as stored, None when only a download would tell."""
        names = part_tensor_names(self.config, Part("span", start, end), self._index.file_of)
        total = 0
        for file, tensors in self._index.files_of(names).items():
            if self._index.pickled:
                return None
            entries = self._files.tensors_of(file)
            total += sum(entries[tensor].size for tensor in tensors if tensor in entries)
        return total

    def _load(
        self,
        part: Part,
        what: str,
        dtype: torch.dtype | None,
        device: torch.device | str,
        progress: Progress | None,
        *,
        config: PretrainedConfig | None = None,
    ) -> PreTrainedModel:
        config = config or self.config
        names = part_tensor_names(config, part, self._index.file_of)
        wanted = self._index.files_of(names)
        paths = self._files.fetch_all(list(wanted))
        sources = dict(zip(paths, wanted.values(), strict=True))
        with (
            self._room_for(what, device),
            open_tensors(sources, what, progress) as (tensors, _),
            quantizer_faults_named(config, self.name),
        ):
            return build_part(config, part, tensors, dtype=dtype or self.dtype, device=torch.device(device))

    @contextmanager
    def _room_for(self, what: str, device: torch.device | str | Placement) -> Iterator[None]:
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory(
                f"There is no room for {what} of {self.name} on {device}.",
                hint="Take fewer blocks, a smaller dtype, or another device.",
            ) from error

    def _stored_dtype(self) -> torch.dtype:
        for config in (self.config, text_config(self.config)):
            stated = getattr(config, "dtype", None)
            if isinstance(stated, torch.dtype):
                return stated
        if self._index.pickled or not self._files.has("model.safetensors"):
            return torch.float32
        from .weights import DTYPES

        kinds = (DTYPES[entry.dtype] for entry in self._files.tensors_of("model.safetensors").values())
        return next((kind for kind in kinds if kind.is_floating_point), torch.float32)


def open_checkpoint(model: str, *, revision: str | None = None, progress: Progress | None = None) -> Checkpoint:
    """Open a model by hub id (`org/name`), local folder, path of a `.gguf` file, or the bundled model's name.

    Reads config and weights index; a GGUF file is converted first, once.

    Args:
        model: which.
        revision: branch, tag or commit on the hub; None is its main branch.
        progress: told bytes converted and, later, downloaded.

    Raises:
        ModelNotFound, ModelGated, FamilyNotCertified, BadInput: the request.
        CheckpointBroken, DiskFull, HubUnreachable: this machine.
    """
    return Checkpoint(_find_files(model, revision, progress))


def _adapt(model: PreTrainedModel, adapter: Adapter, progress: Progress | None) -> None:
    from .lora import adapt  # PEFT takes seconds to import

    blocks = range(model.part.start, model.part.end)
    with open_adapter_tensors(adapter, blocks, progress) as (tensors, _):
        adapt(model, adapter, tensors, blocks)


def _find_files(model: str, revision: str | None, progress: Progress | None) -> ModelFiles:
    local = _local_files(model, progress)
    if local is not None:
        if revision is not None:
            raise BadInput(
                f"Revision {revision!r} was asked for, but {model} is on this machine, where there is only one.",
                hint="Leave the revision out, or name a hub model.",
            )
        return local
    if not HUB_ID.fullmatch(model):
        raise ModelNotFound(
            f"There is no model {model!r}: no such folder or .gguf file, and it is no hub id.",
            hint=f"Name a hub id like org/name, a folder, a .gguf file, or {BUNDLED_NAME}.",
        )
    from .hub import HubFiles

    return HubFiles(model, revision, progress)


def _local_files(model: str, progress: Progress | None) -> FolderFiles | None:
    """A model of this machine, or None when the name can only be a hub's."""
    if model == BUNDLED_NAME:
        return FolderFiles(_converted(bundled_gguf(), progress), BUNDLED_NAME)
    path = Path(model).expanduser()
    try:
        if model and path.is_dir():
            return FolderFiles(path.resolve(), path.resolve().name)
        if path.is_file() and path.suffix == ".gguf":
            return FolderFiles(_converted(path.resolve(), progress), path.stem)
        if path.is_file():
            raise BadInput(f"{path} is a file, but no .gguf file.", hint="Name the model's folder, or a .gguf file.")
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EACCES):
            raise ModelNotFound(
                f"{model[:MAX_SHOWN_CHARACTERS]!r} cannot be opened: {error.strerror}.",
                hint="Check the path, or name a hub id like org/name.",
            ) from error
        raise
    if path.is_absolute() or model.startswith((".", "~")) or path.suffix == ".gguf":
        raise ModelNotFound(
            f"There is no file or folder {path}.", hint="Check the path, or name a hub id like org/name."
        )
    return None


def _converted(path: Path, progress: Progress | None) -> Path:
    from .gguf import converted_folder

    return converted_folder(path, progress)


def _read_config(path: Path, raw: dict[str, object]) -> PretrainedConfig:
    family = raw.get("model_type")
    if not isinstance(family, str):
        raise CheckpointBroken(f"{path} names no model_type.", hint="The model is not in the transformers layout.")
    if family not in CONFIG_MAPPING:
        raise FamilyNotCertified(
            f"The model family {family!r} is not known to the installed transformers.",
            hint="Run `swarmnode models` for the families that can be served.",
        )
    try:
        return AutoConfig.from_pretrained(str(path.parent), trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise CheckpointBroken(
            f"{path} is no valid config of family {family!r}: {_first_line(error)}.",
            hint="The file is damaged or of a newer transformers: download the model again.",
        ) from error


def _context_tokens(config: PretrainedConfig) -> int:
    text = text_config(config)
    for field in CONTEXT_FIELDS:
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return UNBOUNDED_CONTEXT_TOKENS


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _tried(span: Span) -> Span:
    """A span that has run a token: some families' code brings together what lies on different devices."""
    try:
        span.try_out()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        family = span.model.config.model_type
        raise BadInput(
            f"Blocks of the family {family!r} cannot be split over devices: {_first_line(error)}.",
            hint="Name one device with --device.",
        ) from error
    return span
