"""Show for each model family whether cutting is exact: a tiny random model in parts against the same model whole.

Every comparison uses equal shapes and float32 and must be bit-identical: a long prompt at once, the prompt in chunks,
decode from the cache, going back and doing it again, two sessions in turn, two rows; over every way to cut the blocks in
two, all single blocks, and all in one. `python -m swarmnode.models.certify --write` makes `certified.json` and `docs/FAMILIES.md`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from swarmnode.errors import FamilyNotCertified, ReplayNeeded, SwarmnodeError

from . import cut
from .ends import Ends
from .families import Certificate
from .quirks import quirks_of
from .span import Span
from .tiny import VOCABULARY, tiny_config

__all__ = ["TinyCheckpoint", "certify_family", "chains", "tiny_checkpoint"]

ROOM = Path(__file__).resolve().parent
TABLE = ROOM / "certified.json"
PAGE = ROOM.parent / "docs" / "FAMILIES.md"

SEED = 20
NOISE = 0.05
"""Added to every weight, so that nothing a family initialises to zero or one hides a mistake."""


CACHE_TOLERANCE = 1e-3
"""How far, relative to the largest logit, stock decode may be from a pass at once: rounding, not forgetting."""


@dataclass(frozen=True)
class TinyCheckpoint:
    """A tiny random model as a checkpoint in a folder, with the stock model loaded from it."""

    folder: Path
    config: PretrainedConfig
    whole: PreTrainedModel

    def part(self, part: cut.Part) -> PreTrainedModel:
        """Build a part in float32 from the folder, as any node would."""
        with ExitStack() as files:
            slices: dict[str, Any] = {}
            for path in sorted(self.folder.glob("*.safetensors")):
                opened = files.enter_context(safe_open(path, framework="pt"))
                slices |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            names = cut.part_tensor_names(self.config, part, slices)
            tensors = {name: slices[name] for name in names}
            return cut.build_part(self.config, part, tensors, dtype=torch.float32, device="cpu")

    def span(self, start: int, end: int) -> Span:
        """The blocks `start:end`."""
        return Span(self.part(cut.Part("span", start, end)))

    def ends(self) -> Ends:
        """The ends."""
        return Ends(self.part(cut.Part("ends")))


@contextmanager
def tiny_checkpoint(config: PretrainedConfig, seed: int = SEED) -> Iterator[TinyCheckpoint]:
    """A tiny random model, saved in its checkpoint format (experts apart, old names) to a folder that goes away."""
    stock, own_config = cut.causal_class(config)
    with cut.quiet_transformers(), tempfile.TemporaryDirectory() as name:
        torch.manual_seed(seed)
        model = stock(copy.deepcopy(own_config))  # saving writes into its config
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * NOISE)
        model.save_pretrained(name)
        whole = stock.from_pretrained(name, config=own_config, dtype=torch.float32).eval()
        yield TinyCheckpoint(Path(name), config, whole)


def certify_family(family: str) -> Certificate:
    """Build, cut and compare one family; whatever goes wrong becomes the reason."""
    if quirks_of(family).why_not:
        return Certificate(family, False, quirks_of(family).why_not, None, False)
    try:
        with tiny_checkpoint(tiny_config(family)) as checkpoint:
            return _compare(family, checkpoint)
    except SwarmnodeError as error:
        found = error.message
    except Exception as error:  # noqa: BLE001  any failure of a foreign model is a finding, not a crash
        found = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return Certificate(family, False, found, None, False)


def chains(blocks: int) -> list[list[tuple[int, int]]]:
    """Ways to cut: all single blocks, in two at every boundary, all in one."""
    single = [(index, index + 1) for index in range(blocks)]
    halves = [[(0, at), (at, blocks)] for at in range(1, blocks)]
    return [single, *halves, [(0, blocks)]] if blocks > 1 else [single]


class _Chain:
    """A model in parts: the ends and some spans after each other."""

    def __init__(self, ends: Ends, spans: Sequence[Span], single_steps: bool) -> None:
        self._ends = ends
        self._spans = spans
        self._single_steps = single_steps

    def open(self) -> list[Any]:
        """A session: one cache for each span."""
        return [span.open_cache() for span in self._spans]

    def step(self, caches: list[Any], ids: torch.Tensor, position: int) -> torch.Tensor:
        """Logits of all positions. Raises ReplayNeeded."""
        hidden = self._ends.embed(ids, position)
        for span, cache in zip(self._spans, caches, strict=True):
            hidden = span.step(cache, hidden, position)
        rows = 1 if self._single_steps and position else hidden.shape[1]
        return torch.cat(
            [self._ends.logits(piece, last_only=False) for piece in torch.split(hidden, rows, dim=1)], dim=1
        )

    def play(
        self, ids: torch.Tensor, lengths: Sequence[int], caches: list[Any] | None = None
    ) -> Iterator[torch.Tensor]:
        """Logits of the consecutive chunks of a new session, or of a session sent again from the start."""
        caches = self.open() if caches is None else caches
        for start, stop in _bounds(lengths):
            yield self.step(caches, ids[:, start:stop], start)


def _whole(model: PreTrainedModel, ids: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Logits of the consecutive chunks by the stock model and its own cache, in single steps if the family needs it."""
    cache = DynamicCache(config=cut.text_config(model.config))
    single = quirks_of(model.config.model_type).single_steps
    chunks = []
    for start, stop in _bounds(lengths):
        pieces: list[torch.Tensor] = []
        for piece in torch.split(ids[:, start:stop], 1 if single and start else stop - start, dim=1):
            place = start + len(pieces)
            about = cut.step_arguments(model, cache, place, piece)
            with torch.inference_mode():
                pieces.append(model(input_ids=piece, **about).logits.float())
        chunks.append(torch.cat(pieces, dim=1))
    return chunks


def _bounds(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    places = [0]
    for length in lengths:
        places.append(places[-1] + length)
    return pairwise(places)


PROMPT = (11,)
CHUNKS = (5, 4, 2, 1, 1, 1)
OTHER_CHUNKS = (3, 1, 1, 4, 1, 1)
BEFORE_SHORT, AFTER_SHORT, KEPT_SHORT = (3, 1, 1), (2, 1), (3,)
AFTER_LONG, KEPT_LONG = (2, 1), (5, 4)


@dataclass
class _Findings:
    """Largest difference seen under each heading, and whether sessions could go back."""

    differences: dict[str, float]
    truncatable: bool = True

    def compare(self, heading: str, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
        for one, other in zip(ours, theirs, strict=True):
            gap = (one - other).abs().max().item() if one.shape == other.shape else math.inf
            gap = math.inf if math.isnan(gap) else gap
            self.differences[heading] = max(gap, self.differences.get(heading, 0.0))


def _compare(family: str, checkpoint: TinyCheckpoint) -> Certificate:
    torch.manual_seed(SEED + 1)
    first = torch.randint(3, VOCABULARY, (1, 20))
    again = torch.randint(3, VOCABULARY, (1, 20))
    pair = torch.randint(3, VOCABULARY, (2, 20))
    whole = checkpoint.whole
    short = torch.cat([first[:, : sum(KEPT_SHORT)], again], dim=1)
    long = torch.cat([first[:, : sum(KEPT_LONG)], again], dim=1)
    expected = {
        "prefill": _whole(whole, first, PROMPT),
        "first": _whole(whole, first, CHUNKS),
        "second": _whole(whole, pair, OTHER_CHUNKS),
        "short": _whole(whole, short, KEPT_SHORT + AFTER_SHORT),
        "long": _whole(whole, long, KEPT_LONG + AFTER_LONG),
    }
    single_steps = quirks_of(whole.config.model_type).single_steps
    findings = _Findings({})
    _require_consistent(expected["first"], _whole(whole, first, (sum(CHUNKS),)))
    ends = checkpoint.ends()
    for bounds in chains(ends.num_blocks):
        chain = _Chain(ends, [checkpoint.span(*span) for span in bounds], single_steps)
        findings.compare("a prompt at once", list(chain.play(first, PROMPT)), expected["prefill"])
        mine, other = chain.open(), chain.open()
        steps = list(zip(chain.play(first, CHUNKS, mine), chain.play(pair, OTHER_CHUNKS, other), strict=True))
        findings.compare("chunks and decode", [one for one, _ in steps], expected["first"])
        findings.compare("a second session in turn", [two for _, two in steps], expected["second"])
        _go_back(chain, mine, long, KEPT_LONG, AFTER_LONG, expected["long"], findings)
        caches = chain.open()
        list(chain.play(first, BEFORE_SHORT, caches))
        if not _go_back(chain, caches, short, KEPT_SHORT, AFTER_SHORT, expected["short"], findings):
            findings.truncatable = False
    return _certificate(family, findings)


def _require_consistent(chunked: list[torch.Tensor], at_once: list[torch.Tensor]) -> None:
    """Refuse a family whose stock cache gives other logits than a pass without one: its decode could not be trusted."""
    one, other = torch.cat(chunked, dim=1), at_once[0]
    gap = ((one - other).abs().max() / other.abs().max()).item()
    if not gap < CACHE_TOLERANCE:
        raise FamilyNotCertified(
            f"Its stock code decodes from the cache otherwise than at once (by {gap:.0e} of the logits)."
        )


def _go_back(
    chain: _Chain,
    caches: list[Any],
    ids: torch.Tensor,
    kept: tuple[int, ...],
    after: tuple[int, ...],
    expected: list[torch.Tensor],
    findings: _Findings,
) -> bool:
    """Truncate to the end of `kept` and go on with other tokens, or send the session again where that is refused."""
    try:
        ours = [
            chain.step(caches, ids[:, start:stop], start) for start, stop in _bounds(kept + after) if start >= sum(kept)
        ]
    except ReplayNeeded:
        findings.compare("a replay", list(chain.play(ids, kept + after, caches)), expected)
        return False
    findings.compare("going back", ours, expected[len(kept) :])
    return True


def _certificate(family: str, findings: _Findings) -> Certificate:
    worst = max(findings.differences.values())
    failed = [f"{heading} ({gap:.1e})" for heading, gap in findings.differences.items() if gap > 0]
    reason = f"In parts it differs from the whole: {', '.join(failed)}." if failed else ""
    return Certificate(family, not failed, reason, worst, findings.truncatable and not failed)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m swarmnode.models.certify [--family NAME …] [--write]`."""
    parser = argparse.ArgumentParser(prog="python -m swarmnode.models.certify", description="Certify model families.")
    parser.add_argument("--family", action="append", help="only this family; may be given several times")
    parser.add_argument("--write", action="store_true", help="write the table and the page (without --family)")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    certificates = []
    for family in asked.family or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        certificates.append(certify_family(family))
        print(_line(certificates[-1]), flush=True)
    if asked.write and not asked.family:
        TABLE.write_text(table(certificates), encoding="utf-8")
        PAGE.write_text(page(certificates), encoding="utf-8")


def _line(entry: Certificate) -> str:
    verdict = "certified" if entry.certified else "refused"
    return (
        f"{entry.family:28} {verdict:10} {'' if entry.truncatable else 'replays ' if entry.certified else entry.reason}"
    )


def table(certificates: Sequence[Certificate]) -> str:
    """The text of `certified.json`."""
    families = [asdict(entry) for entry in certificates]
    return json.dumps({"transformers": transformers.__version__, "families": families}, indent=1) + "\n"


def page(certificates: Sequence[Certificate]) -> str:
    """The text of `docs/FAMILIES.md`."""
    served = [entry for entry in certificates if entry.certified]
    refused = [entry for entry in certificates if not entry.certified]
    lines = [
        "# Model families",
        "",
        "Made by `python -m swarmnode.models.certify --write`; do not edit. "
        f"Of the {len(certificates)} causal language models of transformers {transformers.__version__}, "
        f"{len(served)} are certified: a tiny random model of the family, cut at every boundary, gave the whole model's "
        "logits bit for bit in float32 (a prompt at once, in chunks, decode from the cache, going back, two sessions in turn).",
        "",
        "*Goes back*: a session may return to an earlier position (with a sliding window: as long as nothing left it). "
        "*Replays*: the state cannot go back, so the session is sent again from the start.",
        "",
        "| family | a session |",
        "|---|---|",
        *[f"| {entry.family} | {'goes back' if entry.truncatable else 'replays'} |" for entry in served],
        "",
        "## Refused",
        "",
        "| family | why |",
        "|---|---|",
        *[f"| {entry.family} | {entry.reason.replace('|', '/')} |" for entry in refused],
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
