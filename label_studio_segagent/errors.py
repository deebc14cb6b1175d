"""All exceptions the package raises on purpose.

Messages name the offending value and the remedy, and never carry secrets: they may be shown to clients.

* SegAgentError
    * ConfigError: a setting, a model spec or a labelling config is wrong. The operator can fix it.
    * InputError: an image, a region or a request is wrong. Only the item it belongs to is lost.
        * ImageError: the image cannot be fetched, is refused, or cannot be decoded.
        * RegionError: a region of a Label Studio result cannot be turned into a mask.
    * GrammarError: a model's answer cannot be read as an action.
    * ApiError: Label Studio refused or failed a call.
    * BusyError: another process is at the same work. It passes by itself.
"""

from __future__ import annotations

__all__ = [
    "ApiError", "BusyError", "ConfigError", "GrammarError", "ImageError", "InputError", "RegionError", "SegAgentError",
]  # fmt: skip


class SegAgentError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(SegAgentError):
    """A setting, a model name or a labelling config is wrong."""


class InputError(SegAgentError):
    """One item of the input is wrong; the others are not affected."""


class ImageError(InputError):
    """An image cannot be fetched, is refused by the security rules, or cannot be decoded."""


class RegionError(InputError):
    """A region of a Label Studio result cannot be turned into a mask or a prompt."""


class GrammarError(SegAgentError):
    """A model's answer cannot be read as an action."""


class ApiError(SegAgentError):
    """Label Studio refused or failed a call.

    Args:
        message: What failed and what to do.
        status: HTTP status of the answer, or None when there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BusyError(SegAgentError):
    """Another process is at the same work; it can be done when that has ended."""
