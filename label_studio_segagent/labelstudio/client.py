"""Calls to Label Studio's API with a legacy token or a personal access token (PAT).

A PAT is a JWT refresh token: it is exchanged for an access token that lives 300 seconds.
Tokens go to the configured Label Studio only (origin and, where its address has one, path), never across redirects.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from ..errors import ApiError, ConfigError

__all__ = ["LabelStudioClient", "belongs", "leaves_folder", "origin", "token_kind"]

_REFRESH_AFTER = 240.0
"""Seconds after which an access token, which lives 300, is replaced."""


def origin(url: str) -> tuple[str, str, int]:
    """(scheme, host, port) of a URL: what decides whether it is the same server.

    Raises:
        ConfigError: The URL has no http(s) scheme or no host.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} must start with http:// or https:// and name a host")
    return parts.scheme, parts.hostname.lower(), port


def belongs(url: str, base_url: str) -> bool:
    """Whether a URL is on the server at `base_url`: of the same origin and, where that has a path, below it.

    Example:
        >>> belongs("http://host/labelstudio/data/upload/1/a.png", "http://host/labelstudio")
        True
        >>> belongs("http://host/another/app", "http://host/labelstudio")
        False

    Raises:
        ConfigError: One of them has no http(s) scheme or no host.
    """
    if origin(url) != origin(base_url):
        return False
    path, prefix = urlsplit(url).path, urlsplit(base_url).path.rstrip("/")
    return not prefix or (path.startswith(f"{prefix}/") and not leaves_folder(path))


def leaves_folder(path: str) -> bool:
    """Whether a URL's path has `..` in it, however that is written."""
    return ".." in unquote(path).replace("\\", "/").split("/")


def token_kind(token: str) -> str:
    """What a Label Studio API key is: "none", "pat" (a JWT) or "legacy"."""
    if not token:
        return "none"
    return "pat" if token.count(".") == 2 else "legacy"


class _TokenAuth(httpx.Auth):
    """Adds the token to requests that go to Label Studio, and to no others. Safe under threads."""

    def __init__(self, base_url: str, token: str) -> None:
        origin(base_url)  # a wrong address is said at once
        self._base_url, self._token = base_url, token
        self._access, self._fetched = "", 0.0
        self._lock = threading.Lock()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if not self._token or not belongs(str(request.url), self._base_url):
            yield request
            return
        if token_kind(self._token) == "legacy":
            request.headers["Authorization"] = f"Token {self._token}"
            yield request
            return
        access = self._fresh()
        if not access:
            with self._lock:  # many threads, one refresh
                access = self._fresh() or (yield from self._refresh())
        request.headers["Authorization"] = f"Bearer {access}"
        response = yield request
        if response.status_code == 401:  # revoked early, or the clock jumped
            with self._lock:
                access = self._access if self._access != access else (yield from self._refresh())
            request.headers["Authorization"] = f"Bearer {access}"
            yield request

    def _fresh(self) -> str:
        return self._access if time.monotonic() - self._fetched < _REFRESH_AFTER else ""

    def _refresh(self) -> Generator[httpx.Request, httpx.Response, str]:
        url = f"{self._base_url}/api/token/refresh/"
        response = yield httpx.Request("POST", url, json={"refresh": self._token})
        response.read()
        access = _access_token(response)
        if not access:
            raise ApiError(
                f"Label Studio at {self._base_url} refused the personal access token (HTTP {response.status_code}); "
                "make a new one under Account & Settings and set LABEL_STUDIO_API_KEY",
                response.status_code,
            )
        self._access, self._fetched = access, time.monotonic()
        return access


def _access_token(response: httpx.Response) -> str:
    """The access token in the answer to a refresh, or ""."""
    try:
        body = response.json() if response.status_code == 200 else None
    except ValueError:
        return ""
    return str(body.get("access") or "") if isinstance(body, dict) else ""


class LabelStudioClient:
    """A small client of Label Studio's REST API. Safe under threads.

    Args:
        url: Where Label Studio is, for example `http://localhost:8080` or `https://example.org/labelstudio`.
        token: Legacy token or PAT; "" for none.
        timeout: Seconds for connecting and for each read.

    Attributes:
        url: Without a slash at the end.
        http: The `httpx.Client` underneath; it does not follow redirects and sends the token to Label Studio only.

    Raises:
        ConfigError: The URL is not an http(s) URL.
    """

    def __init__(self, url: str, token: str = "", timeout: float = 20.0) -> None:
        self.url = url.rstrip("/")
        self.http = httpx.Client(auth=_TokenAuth(self.url, token.strip()), timeout=timeout, follow_redirects=False)

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Call the API and return the decoded JSON (None for an empty answer).

        Args:
            method: "GET", "POST", "PATCH" or "DELETE".
            path: Begins with a slash.
            body: JSON to send, or None.
            **query: Query parameters.

        Raises:
            ApiError: No answer, an error status, or an answer that is not JSON.
        """
        try:
            response = self.http.request(method, self.url + path, json=body, params=query or None)
        except httpx.HTTPError as error:
            raise ApiError(
                f"no answer from Label Studio at {self.url} ({type(error).__name__}); is it running, and is "
                "LABEL_STUDIO_URL right as seen from this machine?"
            ) from error
        if response.status_code >= 400:
            raise ApiError(
                f"{method} {path} failed with HTTP {response.status_code}: {response.text[:300]}", response.status_code
            )
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise ApiError(f"{method} {path} did not answer with JSON: {response.text[:100]!r}") from error

    def close(self) -> None:
        """Close the connections."""
        self.http.close()
