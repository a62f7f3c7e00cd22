"""Certify model families: compare tiny models in parts with the whole, and write what came out as a table.

`python -m swarmnode.models.certify --write` makes `certified.json` (which the program obeys) and `docs/FAMILIES.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from swarmnode.errors import SwarmnodeError

from .comparison import Findings, compare, require_consistent
from .cut import num_blocks
from .families import TABLE_NAME, Certificate
from .quirks import quirks_of
from .ragged_comparison import RaggedFindings, compare_ragged
from .tiny import tiny_config
from .tiny_checkpoint import tiny_checkpoint
from .training_comparison import compare_training

__all__ = ["certify_family", "known_families", "page", "table"]

ROOM = Path(__file__).resolve().parent
TABLE = ROOM / TABLE_NAME
PAGE = ROOM.parent / "docs" / "FAMILIES.md"


def known_families() -> list[str]:
    """Every model type that the installed transformers has a causal language model for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def certify_family(family: str) -> Certificate:
    """Build, cut and compare one family; whatever goes wrong becomes the reason."""
    if quirks_of(family).why_not:
        return _refused(family, quirks_of(family).why_not)
    try:
        with tiny_checkpoint(tiny_config(family)) as checkpoint:
            require_consistent(checkpoint.whole)
            findings = compare(checkpoint)
            sharing = compare_ragged(checkpoint.span(0, num_blocks(checkpoint.config)))
            return _judge(family, findings, sharing, compare_training(checkpoint))
    except SwarmnodeError as error:
        return _refused(family, error.message)
    except Exception as error:  # noqa: BLE001  any failure of a foreign model is a finding, not a crash
        return _refused(family, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _refused(family: str, reason: str) -> Certificate:
    return Certificate(
        family,
        certified=False,
        reason=reason,
        max_difference=None,
        truncatable=False,
        ragged=False,
        why_not_ragged="",
        trains=False,
        why_not_trains="",
    )


def _judge(family: str, findings: Findings, sharing: RaggedFindings, why_not_trains: str) -> Certificate:
    failed = [f"{heading} ({gap:.1e})" for heading, gap in findings.differences.items() if gap > 0]
    return Certificate(
        family,
        certified=not failed,
        reason=f"In parts it differs from the whole: {', '.join(failed)}." if failed else "",
        max_difference=max(findings.differences.values()),
        truncatable=findings.truncatable and not failed,
        ragged=not failed and not sharing.why_not,
        why_not_ragged="" if failed else sharing.why_not,
        trains=not failed and not why_not_trains,
        why_not_trains="" if failed else why_not_trains,
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
        "Made by `python -m swarmnode.models.certify --write`; do not edit.",
        "",
        f"Of the {len(certificates)} causal language models of transformers {transformers.__version__}, {len(served)}",
        "are certified: a tiny random model of the family, cut at every boundary, gave the whole model's logits bit",
        "for bit in float32, at equal shapes: a prompt at once and in chunks, decode from the cache, going back and",
        "doing it again, two sessions in turn, two rows. Weights went through the family's own checkpoint format.",
        "",
        "Sessions of a family that *shares* passes are packed into one pass of the blocks, prefill and decode alike,",
        "and what each is given is, bit for bit, what it is given alone. Those of the others run one after another.",
        "",
        f"Of the certified, {sum(entry.trains for entry in served)} can be trained in parts: they gave the gradients",
        "that autograd gives on the whole model, of what enters the first block and of deep prompts.",
        *[f"- Not {entry.family}: {entry.why_not_trains}" for entry in served if not entry.trains],
        "",
        "A session of a family that *goes back* may return to an earlier position (with a sliding window: as long",
        "as nothing has left it). One that *replays* cannot: the session is sent again from the start.",
        "",
        "Checkpoints of families made as encoders (bert and its kin) are served if `is_decoder` is set in the config.",
        "Gemma 4 with shared keys and values or per-layer embeddings (E2B, E4B) is refused when it is opened.",
        "",
        "| family | a session | in a pass |",
        "|---|---|---|",
        *[f"| {entry.family} | {_session(entry)} | {_passes(entry)} |" for entry in served],
        "",
        "## Refused",
        "",
        "| family | why |",
        "|---|---|",
        *[f"| {entry.family} | {entry.reason.replace('|', '/')} |" for entry in refused],
    ]
    return "\n".join(lines) + "\n"


def _session(entry: Certificate) -> str:
    return "goes back" if entry.truncatable else "replays"


def _passes(entry: Certificate) -> str:
    return "shares" if entry.ragged else f"alone: {entry.why_not_ragged.replace('|', '/')}"


def _gradients(entry: Certificate) -> str:
    return "trains" if entry.trains else f"no gradients: {entry.why_not_trains}"


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m swarmnode.models.certify [--family NAME …] [--write]`."""
    parser = argparse.ArgumentParser(prog="python -m swarmnode.models.certify", description="Certify model families.")
    parser.add_argument("--family", action="append", help="only this family; may be given several times")
    parser.add_argument("--write", action="store_true", help="write the table and the page (of all families)")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    certificates = []
    for family in asked.family or known_families():
        entry = certify_family(family)
        certificates.append(entry)
        said = (
            f"certified, {_session(entry)}, {_passes(entry)}, {_gradients(entry)}" if entry.certified else entry.reason
        )
        print(f"{family:28} {said}", flush=True)
    if asked.write and not asked.family:
        TABLE.write_text(table(certificates), encoding="utf-8")
        PAGE.write_text(page(certificates), encoding="utf-8")


if __name__ == "__main__":
    main()
