"""Images of tasks: fetched by strict rules, decoded once, kept on disk.

Task data is written by annotators and importers, so it is hostile. Accepted are:

* paths on the configured Label Studio that start with `/data/` or `/storage-data/`, or that let it resolve a file of
  its storage (`/tasks/12/resolve/?fileuri=…`), with or without the path that its own address has;
* http(s) URLs on the configured Label Studio or on an allow-listed host;
* `s3://`, `gs://` and `azure-blob://` URIs, which Label Studio presigns; the host it redirects to must be allow-listed;
* `data:image/…;base64,` URIs.

Never a file path, never another host, never a redirect to one; the token goes to Label Studio only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urljoin, urlsplit

import httpx

from ..datasets.image_file import decode_image
from ..errors import ApiError, ConfigError, ImageError
from ..hlmat.arrays import Image
from .client import LabelStudioClient, belongs, leaves_folder, origin

__all__ = ["ImageLoader"]

_CLOUD = ("s3", "gs", "azure-blob")
_FILES = ("/data/", "/storage-data/")
_RESOLVED = re.compile(r"/(tasks|projects)/[0-9]+/(resolve|presign)/?")
"""Where Label Studio fetches a file of a cloud storage, or redirects to it."""
_MAX_REDIRECTS = 4
_DOWNLOAD_SECONDS = 60.0
_STALE_AFTER = 3600.0
"""Seconds after which an image is fetched again; uploads to Label Studio never change and are kept."""

log = logging.getLogger(__name__)


class ImageLoader:
    """Fetches and caches the images of tasks. Safe under threads and processes.

    Args:
        client: The configured Label Studio, or None when there is none: only `data:` URIs and allowed hosts work then.
        cache_dir: Folder of the cache; made when missing.
        allowed_hosts: Further hosts that http(s) images may come from: `example.org`, `example.org:8443`.
        max_bytes: Largest file.
        max_pixels: Largest image.
        cache_bytes: Size of the cache; the files used longest ago go first. A cache that cannot be read or written
            costs time, not the answer.
    """

    def __init__(
        self,
        client: LabelStudioClient | None,
        cache_dir: Path,
        *,
        allowed_hosts: Iterable[str] = (),
        max_bytes: int = 64 * 2**20,
        max_pixels: int = 64_000_000,
        cache_bytes: int = 2 * 2**30,
    ) -> None:
        self._client, self._cache = client, cache_dir
        self._allowed = {host.strip().lower() for host in allowed_hosts if host.strip()}
        self._max_bytes, self._max_pixels, self._cache_bytes = max_bytes, max_pixels, cache_bytes
        self._plain = httpx.Client(timeout=20.0, follow_redirects=False)
        self._pruning = threading.Lock()

    def load(self, url: str, task_id: int | str | None = None) -> Image:
        """The image behind a task's URL, RGB uint8 (H, W, 3), EXIF orientation applied.

        Raises:
            ImageError: The URL is refused, the image cannot be fetched, or it cannot be decoded.
        """
        if url.startswith("data:"):
            return self._decoded(self._from_data_uri(url), url)
        address = self._resolve(url, task_id)
        file = self._cache / hashlib.sha256(address.encode(errors="surrogatepass")).hexdigest()
        # Uploads have a random part in their names and never change.
        keep = self._client is not None and address.startswith(self._client.url + "/data/upload/")
        data = _read_cached(file, keep)
        if data is not None:
            try:
                return decode_image(data, self._max_pixels)
            except ImageError as error:
                log.warning("fetching %.200r again: its file in the cache is damaged: %s", url, error)
        data = self._fetch(address, url)
        image = self._decoded(data, url)  # only what is an image is kept
        self._store(file, data)
        return image

    def close(self) -> None:
        """Close the connections, those of the client included."""
        self._plain.close()
        if self._client is not None:
            self._client.close()

    def _decoded(self, data: bytes, url: str) -> Image:
        try:
            return decode_image(data, self._max_pixels)
        except ImageError as error:
            raise ImageError(f"{url[: 200 if url[:5] != 'data:' else 40]!r}: {error}") from error

    def _from_data_uri(self, url: str) -> bytes:
        head, _, payload = url.partition(",")
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise ImageError(f"a data URI must be data:image/…;base64,…; this one starts with {url[:40]!r}")
        if len(payload) > self._max_bytes * 4 // 3 + 4:
            raise ImageError(f"the data URI is larger than {self._max_bytes} bytes")
        try:
            return base64.b64decode(payload, validate=True)
        except ValueError as error:
            raise ImageError(f"the data URI is not valid base64: {error}") from error

    def _resolve(self, url: str, task_id: int | str | None) -> str:
        """The address to fetch, or ImageError by the rules of this module."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ImageError(f"{url[:200]!r} is not a URL: {error}") from error
        if parts.scheme in _CLOUD:
            if not str(task_id).isdecimal():
                raise ImageError(f"{url[:200]!r} needs a task, through which Label Studio presigns it; got {task_id!r}")
            file_uri = base64.urlsafe_b64encode(url.encode()).decode()
            return f"{self._label_studio(url).url}/tasks/{task_id}/presign/?fileuri={file_uri}"
        if not parts.scheme and not parts.netloc and (path := self._own_path(url, parts)) is not None:
            if leaves_folder(parts.path):
                raise ImageError(f"{url[:200]!r} leaves its folder")
            return self._label_studio(url).url + path
        if parts.scheme in ("http", "https"):
            self._check_host(url)
            return url
        raise ImageError(
            f"{url[:200]!r} is refused: task images must be Label Studio paths (/data/…, /tasks/1/resolve/?fileuri=…), "
            "http(s) or cloud URLs, or data URIs, never files of this machine"
        )

    def _own_path(self, url: str, parts: SplitResult) -> str | None:
        """What follows Label Studio's own address in a path that it wrote into a task; None if it did not."""
        prefix = "" if self._client is None else urlsplit(self._client.url).path
        below = prefix if prefix and url.startswith(f"{prefix}/") else ""
        rest = url[len(below) :]
        resolved = _RESOLVED.fullmatch(rest.partition("?")[0]) and "fileuri" in parse_qs(parts.query)
        return rest if resolved or rest.startswith(_FILES) else None

    def _label_studio(self, url: str) -> LabelStudioClient:
        if self._client is None:
            raise ImageError(f"{url[:200]!r} is on Label Studio, but LABEL_STUDIO_URL is not set")
        return self._client

    def _check_host(self, url: str) -> None:
        """Raise ImageError unless the URL is on Label Studio or an allow-listed host."""
        try:
            scheme, host, port = origin(url)
            if "@" in urlsplit(url).netloc:
                raise ImageError(f"{url[:200]!r} is refused: it has a user name in it")
        except ConfigError as error:
            raise ImageError(str(error)) from error
        ours = self._client is not None and belongs(url, self._client.url)
        default_port = port == (443 if scheme == "https" else 80)
        if ours or f"{host}:{port}" in self._allowed or (host in self._allowed and default_port):
            return
        raise ImageError(
            f"host {host!r} (port {port}) of {url[:200]!r} is not allowed; add it to SEGAGENT_ALLOWED_IMAGE_HOSTS if "
            "its images are wanted"
        )

    def _fetch(self, address: str, shown: str) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            http = self._plain
            if self._client is not None and belongs(address, self._client.url):
                http = self._client.http
            try:
                with http.stream("GET", address, headers={"Accept": "image/*,*/*;q=0.5"}) as response:
                    if response.has_redirect_location:
                        address = urljoin(address, response.headers["location"])
                        self._check_host(address)
                        continue
                    return self._read(response, shown)
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                raise ImageError(f"{shown[:200]!r} cannot be fetched: {type(error).__name__}: {error}") from error
            except ApiError as error:
                raise ImageError(str(error)) from error
        raise ImageError(f"{shown[:200]!r} is redirected more than {_MAX_REDIRECTS} times")

    def _read(self, response: httpx.Response, shown: str) -> bytes:
        if response.status_code in (401, 403):
            raise ImageError(
                f"{shown[:200]!r} answers HTTP {response.status_code}: set LABEL_STUDIO_API_KEY to a token that may "
                "read it (`segagent doctor` checks it; legacy tokens are off by default in Label Studio 1.23)"
            )
        if response.status_code != 200:
            raise ImageError(f"{shown[:200]!r} answers HTTP {response.status_code}")
        chunks, size, deadline = [], 0, time.monotonic() + _DOWNLOAD_SECONDS
        for chunk in response.iter_bytes():
            size += len(chunk)
            if time.monotonic() > deadline:
                raise ImageError(f"{shown[:200]!r} did not arrive within {_DOWNLOAD_SECONDS:g} seconds")
            if size > self._max_bytes:
                raise ImageError(
                    f"{shown[:200]!r} is larger than {self._max_bytes} bytes; SEGAGENT_MAX_IMAGE_BYTES sets the limit"
                )
            chunks.append(chunk)
        return b"".join(chunks)

    def _store(self, file: Path, data: bytes) -> None:
        """Write atomically; a cache that cannot be written costs time, not the answer."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._cache, prefix=".part-")
            try:
                with os.fdopen(handle, "wb") as out:
                    out.write(data)
                os.replace(name, file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
            self._prune()
        except OSError as error:
            log.warning("cannot write to the image cache %s: %s", self._cache, error)

    def _prune(self) -> None:
        if not self._pruning.acquire(blocking=False):
            return
        try:
            files = []
            for entry in os.scandir(self._cache):
                with contextlib.suppress(OSError):
                    files.append((entry.stat().st_atime, entry.stat().st_size, entry.path))
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self._cache_bytes:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    total -= size
        finally:
            self._pruning.release()


def _read_cached(file: Path, keep: bool) -> bytes | None:
    """The cached file, or None. Its access time says when it was used, the other one when it was fetched."""
    try:
        fetched = file.stat().st_mtime
        if not keep and time.time() - fetched > _STALE_AFTER:
            return None
        with contextlib.suppress(OSError):
            os.utime(file, (time.time(), fetched))
        return file.read_bytes()
    except OSError:
        return None
