"""A model of the Hugging Face hub: found by id, its files fetched into huggingface_hub's own cache.

HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE count, as huggingface_hub reads them. Knows no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import httpx2
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.file_download import repo_folder_name

# Public there, though its own type stub hides them.
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

from swarmnode.errors import CheckpointBroken, HubUnreachable, ModelGated, ModelNotFound, SwarmnodeError

from .cache_folder import disk_full_named, require_room
from .download import download_file
from .progress import Progress, ProgressEvent
from .tensor_file import ITEM_BYTES, TensorEntry, read_header

__all__ = ["HubFiles"]

ANSWER_SECONDS = 15.0
MAX_PLAIN_BYTES = 50_000_000_000
"""Larger files the hub gives out through its own protocol only, which huggingface_hub speaks."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_SAFE = re.compile(r"[A-Za-z0-9_\-]{1,128}")

HTTP_UNAUTHORIZED, HTTP_FORBIDDEN, HTTP_TOO_MANY = 401, 403, 429


class HubFiles:
    """The files of one model of the hub at one commit. See ModelFiles.

    When the hub does not answer, what the cache holds of the model serves.

    Args:
        repo: `org/name`.
        revision: branch, tag or commit; None is the main branch.
        progress: told the bytes downloaded.
        marker: a file without which what the cache holds is of no use.

    Raises:
        ModelNotFound: there is no such model or revision, or it is private.
        ModelGated: it wants a licence accepted, or a token.
        HubUnreachable: the hub does not answer, or may not be asked, and the cache does not hold the model.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None = None,
        progress: Progress | None = None,
        *,
        marker: str = "config.json",
    ) -> None:
        self.name = repo
        self._marker = marker
        self._progress = progress
        self._cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
        self._wanted = revision or constants.DEFAULT_REVISION
        self.commit: str | None
        self.commit, self._sizes = self._resolve()
        self.where = f"{repo} at {self.commit[:12]}"
        self._snapshot = self._cache / "snapshots" / self.commit

    def has(self, name: str) -> bool:
        """See ModelFiles. Without the hub: whether the file is in the cache."""
        return (self._snapshot / name).is_file() or (self._sizes is not None and name in self._sizes)

    def fetch(self, name: str) -> Path:
        """See ModelFiles."""
        return self.fetch_all([name])[0]

    def fetch_all(self, names: Sequence[str]) -> list[Path]:
        """See ModelFiles."""
        missing = [name for name in names if not (self._snapshot / name).is_file()]
        for name in missing:
            self._require_listed(name)
        sizes = self._sizes or {}
        require_room(self._cache, sum(sizes[name] for name in missing), f"The download of {self.name}")
        for name in missing:
            with disk_full_named(self._cache), _explained(self.name, self._wanted, name):
                self._download(name, sizes[name])
        return [self._snapshot / name for name in names]

    def tensors_of(self, name: str) -> dict[str, TensorEntry]:
        """See ModelFiles. Asks the hub for the header alone when the file is not here yet."""
        path = self._snapshot / name
        if path.is_file():
            return read_header(path)
        self._require_listed(name)
        with _explained(self.name, self._wanted, name):
            try:
                header = HfApi().parse_safetensors_file_metadata(self.name, name, revision=self.commit)
            except SafetensorsParsingError as error:
                raise CheckpointBroken(
                    f"{name} of {self.where} is no safetensors file.", hint="Tell the model's authors."
                ) from error
        return {
            tensor: TensorEntry(
                info.dtype,
                tuple(info.shape),
                info.data_offsets[0],
                info.data_offsets[1] - info.data_offsets[0],
            )
            for tensor, info in header.tensors.items()
            if info.dtype in ITEM_BYTES
        }

    def _resolve(self) -> tuple[str, dict[str, int] | None]:
        """The commit, and the size of every file in it, or None when only the cache can be asked."""
        try:
            with _explained(self.name, self._wanted):
                info = HfApi().model_info(self.name, revision=self._wanted, files_metadata=True, timeout=ANSWER_SECONDS)
        except HubUnreachable as error:
            return self._cached_commit(error), None
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise HubUnreachable(
                f"The hub at {constants.ENDPOINT} gives no commit for {self.name}.", hint="Check HF_ENDPOINT."
            )
        self._remember(info.sha)
        return info.sha, {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def _remember(self, commit: str) -> None:
        """Note which commit the revision is, as huggingface_hub does, for the day the hub does not answer."""
        ref = self._cache / "refs" / self._wanted
        if self._wanted == commit or (ref.is_file() and ref.read_text() == commit):
            return
        with disk_full_named(self._cache):
            ref.parent.mkdir(parents=True, exist_ok=True)
            # Another process may read it meanwhile.
            fresh = ref.with_name(f"{ref.name}.{os.getpid()}")
            fresh.write_text(commit)
            fresh.replace(ref)

    def _cached_commit(self, reason: HubUnreachable) -> str:
        ref = self._cache / "refs" / self._wanted
        commit = self._wanted if _COMMIT.fullmatch(self._wanted) else ref.read_text() if ref.is_file() else ""
        if not (self._cache / "snapshots" / commit / self._marker).is_file():
            raise reason
        return commit

    def _require_listed(self, name: str) -> None:
        if self._sizes is None:
            raise HubUnreachable(
                f"{name} of {self.where} is not in the cache {constants.HF_HUB_CACHE}, and the hub cannot be asked.",
                hint="Go online, or unset HF_HUB_OFFLINE, and run this again.",
            )
        if name not in self._sizes:
            raise CheckpointBroken(
                f"{self.where} has no file {name}.", hint="The model on the hub is incomplete: tell its authors."
            )

    def _download(self, name: str, size: int) -> None:
        url = hf_hub_url(self.name, name, revision=self.commit)
        headers = build_hf_headers()
        mark = get_hf_file_metadata(url, headers=headers, timeout=ANSWER_SECONDS)
        if mark.etag is not None and mark.size is not None and mark.size <= MAX_PLAIN_BYTES:
            if not _FILE_SAFE.fullmatch(mark.etag):
                raise HubUnreachable(f"The hub at {constants.ENDPOINT} answers nonsense.", hint="Check HF_ENDPOINT.")
            blob = self._cache / "blobs" / mark.etag
            blob.parent.mkdir(parents=True, exist_ok=True)
            lock = Path(constants.HF_HUB_CACHE) / ".locks" / self._cache.name / f"{mark.etag}.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                if not blob.exists():
                    whole = mark.size
                    download_file(
                        url,
                        headers,
                        blob,
                        size=whole,
                        etag=mark.etag,
                        report=lambda done: self._report(name, done, whole),
                    )
        # The blob is there, so this only gives it its name in the snapshot.
        hf_hub_download(self.name, name, revision=self.commit)

    def _report(self, name: str, done: int, size: int) -> None:
        if self._progress is not None:
            self._progress(ProgressEvent("download", name, done, size, "bytes"))


@contextmanager
def _explained(repo: str, revision: str, file: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into our errors, about a model or one file of it."""
    what = repo if file is None else f"{file} of {repo}"
    try:
        yield
    except SwarmnodeError:
        raise
    except GatedRepoError as error:
        raise ModelGated(
            f"{repo} is gated: its authors want you to accept their terms first.",
            hint=f"Accept them at {constants.ENDPOINT}/{repo}, then set HF_TOKEN to a token of your account.",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{repo} has no revision {revision}.", hint=f"See {constants.ENDPOINT}/{repo}/commits for those it has."
        ) from error
    except RemoteEntryNotFoundError as error:
        raise CheckpointBroken(
            f"There is no {what}.", hint="The model on the hub is incomplete: tell its authors."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(
            f"There is no model {repo} on {constants.ENDPOINT}, or it is private.",
            hint="Check the spelling; for a private model set HF_TOKEN to a token that may read it.",
        ) from error
    except HfHubHTTPError as error:
        _raise_for_status(error, what)
    except OfflineModeIsEnabled as error:
        raise HubUnreachable(
            f"HF_HUB_OFFLINE is set, and {what} is not in the cache {constants.HF_HUB_CACHE}.",
            hint="Unset HF_HUB_OFFLINE, or fetch the model while online.",
        ) from error
    except (httpx2.TransportError, httpx2.InvalidURL, LocalEntryNotFoundError) as error:
        raise HubUnreachable(
            f"The hub at {constants.ENDPOINT} cannot be reached for {what}: {_reason(error)}.",
            hint="Check the network, HF_ENDPOINT and your proxy; a download goes on where it was broken off.",
        ) from error


def _raise_for_status(error: HfHubHTTPError, what: str) -> NoReturn:
    status = error.response.status_code
    if status in (HTTP_UNAUTHORIZED, HTTP_FORBIDDEN):
        raise ModelGated(
            f"The hub refuses to give {what} ({status}).",
            hint="Set HF_TOKEN to a valid token that may read it, or unset a token that has expired.",
        ) from error
    busy = " It has had too many requests from here." if status == HTTP_TOO_MANY else ""
    raise HubUnreachable(
        f"The hub at {constants.ENDPOINT} failed with status {status} for {what}.{busy}", hint="Try again later."
    ) from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0].rstrip(".")
