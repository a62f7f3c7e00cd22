"""From a GGUF file to an ordinary model folder with safetensors, tensor by tensor, once.

The names, layouts and config of an architecture are transformers' own (`modeling_gguf_pytorch_utils`); only the loop is
ours, so that a file larger than the machine's memory can be converted and progress be told.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, dequantize
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations.gguf import GGUF_ARCHS, GgufHeader, load_gguf_state_dict, read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from swarmnode.errors import BadInput, CheckpointBroken

from .cache_folder import cache_folder, make_once, require_room
from .families import require_certified
from .identity import VOLATILE, file_fingerprint
from .progress import Progress, ProgressEvent
from .tensor_writer import TensorWriter

__all__ = ["converted_folder"]

CONVERSION = 1
"""Raise it when the converted folder would come out differently."""

EXACT_BYTES = 8 << 30
"""Up to this size in float32 the weights are kept as exactly as GGUF states them; larger models become bfloat16."""

FINGERPRINT_CHARACTERS = 12

END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Each ends an answer: of a text, of a turn, of a message."""


def converted_folder(path: Path, progress: Progress | None = None) -> Path:
    """The model folder made from a GGUF file, made now unless it was made before.

    Raises:
        CheckpointBroken: the file is damaged or cut off.
        BadInput: transformers cannot convert its architecture.
        FamilyNotCertified: the model could not be served in parts anyway.
        DiskFull: there is no room for the result.
    """
    stem = f"{path.stem}-{file_fingerprint(path)[:FINGERPRINT_CHARACTERS]}-{CONVERSION}"
    return make_once(cache_folder() / "converted" / stem, lambda folder: _convert(path, folder, progress))


def _convert(path: Path, folder: Path, progress: Progress | None) -> None:
    header = _read_header(path)
    settings = _settings(path, header)
    config: PretrainedConfig = CONFIG_MAPPING[settings["model_type"]].from_dict(dict(settings))
    require_certified(config)
    stock = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        model = stock(config)
    _write_weights(header, settings, model, folder, progress)
    config.architectures = [stock.__name__]
    _write_config(config, model, folder)
    _write_tokenizer(path, config, folder)
    _write_generation(path, config, folder)


def _read_header(path: Path) -> GgufHeader:
    try:
        header = GgufHeader.from_file(str(path))
    except (ValueError, IndexError, struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise CheckpointBroken(f"{path} is no readable GGUF file: {error}.", hint="Download it again.") from error
    if header.architecture in GGUF_ARCHS:
        raise BadInput(
            f"{path} is of architecture {header.architecture!r}, whose GGUF files cannot be converted yet.",
            hint="Use the model's safetensors: name its hub id or folder instead.",
        )
    end = max((header.data_start + tensor.offset + tensor.nbytes for tensor in header.tensors), default=0)
    size = path.stat().st_size
    if size < end:
        raise CheckpointBroken(
            f"{path} is cut off: it has {size:,} bytes of {end:,}.", hint="Copy or download it again."
        )
    return header


def _settings(path: Path, header: GgufHeader) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = load_gguf_checkpoint(str(path))["config"]
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} is of architecture {header.architecture!r}, which cannot be converted: {error}.",
            hint="Use the model's safetensors: name its hub id or folder instead.",
        ) from error
    if settings.get("model_type") not in CONFIG_MAPPING:
        raise BadInput(
            f"{path} is of architecture {header.architecture!r}, which transformers does not know.",
            hint="Use the model's safetensors: name its hub id or folder instead.",
        )
    return settings


def _write_weights(
    header: GgufHeader,
    settings: Mapping[str, Any],
    model: PreTrainedModel,
    folder: Path,
    progress: Progress | None,
) -> None:
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=settings)
    name_of: dict[str, str] = get_gguf_hf_weights_map(_Outline(model, depth=1), processor)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    present = {name_of[tensor.name] for tensor in header.tensors if tensor.name in name_of}
    present |= {name_of[key] for tensor in header.tensors if (key := tensor.name.removesuffix(".weight")) in name_of}
    tied = set(model.all_tied_weights_keys)
    missing = sorted(set(shapes) - present - tied)
    if missing:
        raise CheckpointBroken(
            f"{header.path} lacks {missing[0]} and {len(missing) - 1} more tensors of the model.",
            hint="The file is incomplete, or its metadata is of another model: download it again.",
        )
    float32_bytes = sum(4 * torch.Size(shapes[name]).numel() for name in present)
    dtype = torch.float32 if float32_bytes <= EXACT_BYTES else torch.bfloat16
    model.config.dtype = dtype
    require_room(folder, float32_bytes * dtype.itemsize // 4, f"The conversion of {header.path}")
    total = sum(tensor.nbytes for tensor in header.tensors)
    done = 0
    with TensorWriter(folder / "model.safetensors", {name: (dtype, shapes[name]) for name in present}) as writer:
        for size, name, tensor in _tensors(header, processor, name_of):
            if name is not None:
                writer.write(name, tensor)
            done += size
            if progress is not None:
                progress(ProgressEvent("convert", Path(header.path).name, done, total, "bytes"))


class _Outline:
    """A model as transformers' search for tensor names sees it, without its deeper modules.

    That search looks into every module and builds a table of thousands of names each time, but only the model itself
    and its children (Bloom's `transformer`) have names that GGUF knows.
    """

    def __init__(self, module: torch.nn.Module, depth: int) -> None:
        self.config = getattr(module, "config", None)
        self.state_dict = module.state_dict
        self._module = module
        self._depth = depth

    def named_children(self) -> list[tuple[str, _Outline]]:
        """The modules to look into besides."""
        if self._depth == 0:
            return []
        return [(name, _Outline(child, self._depth - 1)) for name, child in self._module.named_children()]


def _tensors(
    header: GgufHeader, processor: TensorProcessor, name_of: Mapping[str, str]
) -> Iterator[tuple[int, str | None, torch.Tensor]]:
    """Bytes in the GGUF file, name in transformers and content of each tensor; no name when it goes nowhere."""
    stored = load_gguf_state_dict(header)
    gathered: dict[str, torch.Tensor] = {}
    for tensor in header.tensors:
        packed = stored[tensor.name][...]
        if packed.dtype == torch.uint8:
            numbers = dequantize(packed.numpy(), GGMLQuantizationType(tensor.ggml_type))
        else:
            numbers = packed.float().numpy()
        result = processor.process(
            weights=numbers,
            name=tensor.name,
            tensor_key_mapping=name_of,
            parsed_parameters={"tensors": gathered},
        )
        # A processor that joins several tensors into one keeps it in `gathered` and gives no name.
        yield tensor.nbytes, name_of.get(result.name), torch.from_numpy(result.weights.copy())
    for name, joined in gathered.items():
        yield 0, name, joined


def _write_config(config: PretrainedConfig, model: PreTrainedModel, folder: Path) -> None:
    config.dtype = model.config.dtype
    # Without what changes from version to version, so that every machine's conversion has the same identity.
    content = {key: value for key, value in config.to_dict().items() if key not in VOLATILE}
    (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tokenizer(path: Path, config: PretrainedConfig, folder: Path) -> None:
    try:
        # Not AutoTokenizer, which would read the whole GGUF again only to choose a class.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise CheckpointBroken(
            f"The tokenizer in {path} cannot be converted: {error}.",
            hint="Use the model's safetensors: name its hub id or folder instead.",
        ) from error
    context = getattr(config, "max_position_embeddings", None)
    if context is not None:
        tokenizer.model_max_length = context
    tokenizer.save_pretrained(folder)


def _write_generation(path: Path, config: PretrainedConfig, folder: Path) -> None:
    metadata, _ = read_gguf_metadata(str(path))
    generation = GenerationConfig.from_model_config(config)
    ends = {metadata[key] for key in END_KEYS if key in metadata}
    given = generation.eos_token_id
    ends |= set(given) if isinstance(given, list) else {given} if given is not None else set()
    if ends:
        generation.eos_token_id = sorted(ends) if len(ends) > 1 else ends.pop()
    generation._from_model_config = False
    generation.save_pretrained(folder)
