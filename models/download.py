"""One file over HTTP, taken up again where it was broken off. Knows URLs and files, no hub and no model.

huggingface_hub 2.4 throws away what a killed or failed download had fetched; shards of gigabytes over home links are
worth keeping.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx2
from huggingface_hub import get_session, hf_raise_for_status

from swarmnode.errors import CheckpointBroken

__all__ = ["download_file"]

REPORT_BYTES = 1 << 20
STALL_SECONDS = 30.0
"""A connection that brings nothing for so long is given up and made anew."""

FRUITLESS_TRIES = 4
"""So many connections in a row that bring not one byte end the download."""

PAUSE_SECONDS = 1.0
RANGE_NOT_SATISFIABLE = 416
PARTIAL_CONTENT = 206

_SHA256 = re.compile(r"[0-9a-f]{64}")


def download_file(
    url: str,
    headers: Mapping[str, str],
    destination: Path,
    *,
    size: int,
    etag: str,
    report: Callable[[int], None],
) -> None:
    """Fetch a URL into a file, which appears whole and checked or not at all.

    What is fetched gathers in `<destination>.swarmnode`, and the next try goes on from there, in this process or a
    later one. One process at a time, by the caller's lock.

    Args:
        size: the bytes that the file has.
        etag: its mark; where it is a SHA-256, as the hub gives for large files, the content is checked against it.
        report: told how many bytes are there.

    Raises:
        CheckpointBroken: what came is not what was announced.
        httpx2.TransportError, huggingface_hub.errors.HfHubHTTPError, OSError: as they come.
    """
    partial = destination.with_name(f"{destination.name}.swarmnode")
    tries = FRUITLESS_TRIES
    while (have := _length(partial)) != size:
        if have > size:
            partial.unlink()
            continue
        try:
            _fetch_rest(url, headers, partial, have, report)
        except httpx2.TransportError:
            tries = FRUITLESS_TRIES if _length(partial) > have else tries - 1
            if tries == 0:
                raise
            time.sleep(PAUSE_SECONDS)
            continue
        # A server that ends early without an error is tried again, but not for ever.
        tries = FRUITLESS_TRIES if _length(partial) > have else tries - 1
        if tries == 0:
            raise CheckpointBroken(f"{url} gives only {_length(partial):,} of {size:,} bytes.", hint="Try again later.")
    report(size)
    if _SHA256.fullmatch(etag) and _sha256(partial) != etag:
        partial.unlink()
        raise CheckpointBroken(
            f"{url} came over damaged: its SHA-256 is not {etag[:12]}….",
            hint="Try again: it will be downloaded from the start.",
        )
    partial.rename(destination)


def _fetch_rest(url: str, headers: Mapping[str, str], partial: Path, have: int, report: Callable[[int], None]) -> None:
    # Without compression, as positions in the file must be positions in the stream.
    asked = {**headers, "Accept-Encoding": "identity"}
    if have:
        asked["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=asked, timeout=STALL_SECONDS) as response:
        if response.status_code == RANGE_NOT_SATISFIABLE:
            partial.unlink()
            return
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        # A server may ignore the range and send all of it.
        goes_on = response.status_code == PARTIAL_CONTENT
        with partial.open("ab" if goes_on else "wb") as file:
            done = told = have if goes_on else 0
            report(done)
            # As the chunks come: gathered into larger ones, the last would be lost with the connection.
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                if done - told >= REPORT_BYTES:
                    report(done)
                    told = done


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
