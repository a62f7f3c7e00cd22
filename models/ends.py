"""The ends of a model: token ids to the hidden state that block 0 sees, and the last block's hidden state to logits."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from swarmnode.errors import ProtocolViolation

from . import cut
from .cache import open_stock_cache, seek
from .linears import take_output
from .stand_ins import Gate

__all__ = ["Ends"]


class Ends:
    """Everything of a model that is not a block, as built by `build_part`.

    Attributes:
        model: the stock model with everything else taken out.
        num_blocks: blocks of the whole model.
        hidden_size: width of the hidden state.
        vocab_size: width of the logits.
        weight_bytes: bytes of all weights and buffers held.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._config = cut.text_config(model.config)
        self.num_blocks = cut.num_blocks(model.config)
        self.hidden_size = cut.hidden_size(model.config)
        self.vocab_size = int(self._config.vocab_size)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.weight_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        layout: cut.Layout = model.swarmnode_layout
        self._decoder = model.get_submodule(layout.decoder)
        gates = model.get_submodule(layout.blocks)
        self._first: Gate = gates[0]
        self._last: Gate = gates[-1]
        self._first.remembers = True

    def take_kernels(self) -> None:
        """Have the logits of few rows come from our kernel: sooner, and without the stock kernels' last bits."""
        take_output(self.model.get_output_embeddings())

    @torch.inference_mode()
    def embed(self, ids: torch.Tensor, position: int) -> torch.Tensor:
        """What block 0 sees of some tokens.

        Args:
            ids: `[rows, tokens]`, integers.
            position: place of the first token in the session.

        Returns:
            `[rows, tokens, hidden_size]` in the ends' dtype on the ends' device.
        """
        ids = ids.to(self.device)
        self._forward(self._decoder, position, ids)
        seen = self._first.seen
        if seen is None:
            raise RuntimeError("the stock forward never reached block 0")
        self._forget()
        return seen.contiguous()

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor, *, last_only: bool = True) -> torch.Tensor:
        """The model's opinion on what comes next.

        Args:
            hidden: `[rows, tokens, hidden_size]`, what the last block gave.
            last_only: of the last position alone.

        Returns:
            `[rows, 1 or tokens, vocab_size]` in float32.
        """
        if hidden.ndim != 3 or hidden.shape[2] != self.hidden_size or 0 in hidden.shape:
            raise ProtocolViolation(
                f"The last block's output has shape {list(hidden.shape)}, not [rows, tokens, {self.hidden_size}]."
            )
        hidden = hidden[:, -1:] if last_only else hidden
        hidden = hidden.to(device=self.device, dtype=self.dtype)
        some_ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
        self._last.incoming = hidden  # from here on the stock forward no longer knows what the ids were
        try:
            output = self._forward(self.model, 0, some_ids)
        finally:
            self._forget()
        logits: torch.Tensor = output.logits
        return logits.float()

    def _forward(self, module: Any, position: int, ids: torch.Tensor) -> Any:
        cache = open_stock_cache(self._config, frozenset())
        seek(cache, position)
        return module(input_ids=ids, **cut.step_arguments(module, cache, position, ids))

    def _forget(self) -> None:
        self._first.seen = self._last.seen = self._last.incoming = None
