"""Multimodal language models behind an OpenAI-compatible endpoint: vLLM, `transformers serve`, or a provider's."""

from __future__ import annotations

import base64
import io
import logging
import math
import random
import re
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from PIL import Image as PILImage
from typing_extensions import override

from ..defaults import CONCURRENT_REQUESTS, MODEL_PIXELS, REQUEST_SECONDS
from ..errors import ConfigError, InputError
from ..hlmat.arrays import Image
from .mllm import TEMPERATURE, MllmPolicy, Question, Reply
from .prompts import PRESETS, find_preset
from .resizing import Resize
from .settings import load_model_settings

__all__ = ["OpenAIPolicy", "load_openai"]

log = logging.getLogger(__name__)
_ATTEMPTS = 4
_LONGEST_PAUSE = 30.0
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_OPTIONAL = ("logprobs", "n", "temperature", "chat_template_kwargs")
"""Fields that some servers refuse and that we can do without."""
_SMALL = 256 * 256
"""Images of fewer pixels are sent as PNG: exact, and hardly larger. Others as JPEG."""


class OpenAIPolicy(MllmPolicy):
    """A policy that asks an OpenAI-compatible endpoint.

    Images travel as data URIs. An endpoint that is busy or gives no answer is asked again a few times, with growing
    pauses; where only some requests of a batch fail, those decisions have no action and the reason as their text.

    Args:
        url: Address of the API, with its version: "http://host:8000/v1".
        model: Name of the model there.
        key: API key, or "" for none.
        preset: A key of `prompts.PRESETS`; by default the one for the model's name.
        pixels: Larger images are shrunk to this many pixels.
        plain_image: Show the image without the mask's tint as well.
        concurrency: Requests at once, over all threads.
        timeout: Seconds for one answer.
        pause: Seconds before the second attempt, doubled before each further one.

    Raises:
        ConfigError: The preset is unknown or the address is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str = "",
        *,
        preset: str = "",
        pixels: int = MODEL_PIXELS,
        plain_image: bool = False,
        concurrency: int = CONCURRENT_REQUESTS,
        timeout: float = REQUEST_SECONDS,
        pause: float = 0.5,
    ) -> None:
        preset = find_preset(model, preset)
        resize = Resize(pixels, PRESETS[preset].factor)
        super().__init__(preset, resize, f"openai {model}", plain_image=plain_image)
        self.url, self.model, self.pause = _checked(url), model, pause
        self._key = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        try:
            self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=10.0), limits=limits)
        except UnicodeEncodeError:
            raise ConfigError("SEGAGENT_OPENAI_API_KEY has characters that no key has") from None
        weakref.finalize(self, self._client.close)
        self._pool = ThreadPoolExecutor(concurrency, "openai")
        self._refused: frozenset[str] = frozenset()

    @override
    def _ask(self, questions: Sequence[Question], *, tokens: int, samples: int = 0) -> list[list[Reply]]:
        jobs = [self._pool.submit(self._replies, question, tokens, samples) for question in questions]
        replies: list[list[Reply]] = []
        errors: list[ConfigError | InputError] = []
        for job in jobs:
            try:
                replies.append(job.result())
            except (ConfigError, InputError) as error:
                errors.append(error)
                replies.append([Reply(str(error), failed=True)])
        if errors:
            log.warning("%d of %d requests to %s failed: %s", len(errors), len(jobs), self.url, errors[0])
        # What is wrong with one request says nothing about the others; an endpoint that is gone must be heard of.
        if len(errors) == len(jobs) and any(isinstance(error, ConfigError) for error in errors):
            raise next(error for error in errors if isinstance(error, ConfigError))
        return replies

    def _replies(self, question: Question, tokens: int, samples: int) -> list[Reply]:
        """The replies to one question; fewer than wanted where the endpoint fails half-way."""
        parts = [{"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in question.images]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question.text}]}],
            "max_tokens": tokens,
            "temperature": TEMPERATURE if samples else 0.0,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        if question.size is not None:
            body["logprobs"] = True
        replies: list[Reply] = []
        while (missing := max(samples, 1) - len(replies)) > 0:  # servers that ignore `n` answer one by one
            try:
                replies += self._complete({**body, "n": missing} if missing > 1 else body)
            except (ConfigError, InputError):
                if not replies:
                    raise
                break
        return replies[: max(samples, 1)]

    def _complete(self, body: dict[str, Any]) -> list[Reply]:
        """One request, again without what the endpoint refuses; that is remembered once it has helped.

        Raises:
            InputError: The endpoint refuses this request, or answers with something else than a completion.
            ConfigError: It does not answer or refuses everything.
        """
        refused = self._refused
        while True:
            sent = {name: value for name, value in body.items() if name not in refused}
            if "max_tokens" in refused:  # what newer models of OpenAI call it
                sent["max_completion_tokens"] = body["max_tokens"]
            response = self._post(sent)
            if response.status_code not in (400, 422):
                break
            able = [name for name in (*_OPTIONAL, "max_tokens") if name in sent]
            named = [name for name in able if re.search(rf"""['"`]{name}['"`]""", response.text)]
            drop = named or [name for name in able if name != "max_tokens"]
            if not drop:
                break
            refused = refused | set(drop)
        if response.status_code != 200:
            raise self._refusal(response)
        self._refused = refused
        try:
            choices = response.json()["choices"]
            replies = [Reply(_text(choice["message"]["content"]), _logprob(choice)) for choice in choices]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            replies = []
        if not replies:
            said = self._excerpt(response)
            raise InputError(f"{self.url} answered with something that is no chat completion: {said!r}")
        return replies

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        """The endpoint's answer, whatever it is, unless it is busy for too long.

        Raises:
            ConfigError: There is none.
        """
        reason = ""
        for attempt in range(_ATTEMPTS):
            pause = self.pause * 2**attempt * random.uniform(0.75, 1.25)
            try:
                response = self._client.post(f"{self.url}/chat/completions", json=body)
            except httpx.RequestError as error:
                reason = f"{type(error).__name__} {error}".strip()
            else:
                if response.status_code not in _BUSY:
                    return response
                reason = f"HTTP {response.status_code} {self._excerpt(response)}"
                pause = max(pause, _retry_after(response))
            if attempt + 1 < _ATTEMPTS:
                time.sleep(min(pause, _LONGEST_PAUSE))
        raise ConfigError(
            f"{self.url} gave no answer in {_ATTEMPTS} attempts ({reason}); is it running, reachable from here and "
            "fast enough (SEGAGENT_OPENAI_TIMEOUT, SEGAGENT_OPENAI_CONCURRENCY)?"
        )

    def _refusal(self, response: httpx.Response) -> ConfigError | InputError:
        status = response.status_code
        if status in (401, 403):
            return ConfigError(f"{self.url} refuses the API key (HTTP {status}); set SEGAGENT_OPENAI_API_KEY")
        said = f"HTTP {status} {self._excerpt(response)}"
        if status in (404, 405) or status < 400:
            return ConfigError(f"{self.url} has no model {self.model!r}, or is no OpenAI-compatible API ({said})")
        return InputError(f"{self.url} refused a request ({said})")

    def _excerpt(self, response: httpx.Response) -> str:
        text = " ".join(response.text.split())
        return (text.replace(self._key, "***") if self._key else text)[:200]


def load_openai(argument: str = "") -> OpenAIPolicy:
    """A policy for `<url>#<model>`, with the key from the environment.

    Raises:
        ConfigError: An address or a model is not given.
    """
    url, _, model = argument.partition("#")
    if not url or not model:
        raise ConfigError(
            f'{"openai:" + argument!r} must name an address and a model: "openai:http://host:8000/v1#model"'
        )
    settings = load_model_settings()
    return OpenAIPolicy(
        url,
        model,
        settings.openai_api_key.get_secret_value(),
        preset=settings.preset,
        pixels=settings.model_pixels,
        plain_image=settings.plain_image,
        concurrency=settings.openai_concurrency,
        timeout=settings.openai_timeout,
    )


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"the policy's address is no URL: {error}") from None
    if parsed.userinfo:
        raise ConfigError("the policy's address holds a password; give a key in SEGAGENT_OPENAI_API_KEY instead")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f'the policy\'s address {url!r} must look like "http://host:8000/v1"')
    return url.rstrip("/")


def _data_uri(image: Image) -> str:
    """An RGB uint8 (H, W, 3) image as a data URI."""
    kind = "PNG" if image.shape[0] * image.shape[1] < _SMALL else "JPEG"
    file = io.BytesIO()
    # Without colour subsampling: the edges of the mask's tint are what matters.
    PILImage.fromarray(image).save(file, kind, **({} if kind == "PNG" else {"quality": 92, "subsampling": 0}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _retry_after(response: httpx.Response) -> float:
    """Seconds that a busy endpoint asks to wait; 0 when it does not say."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _logprob(choice: dict[str, Any]) -> float | None:
    tokens = (choice.get("logprobs") or {}).get("content")
    return math.fsum(float(token["logprob"]) for token in tokens) if tokens else None
