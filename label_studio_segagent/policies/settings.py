"""Settings of the models, each an environment variable or a line in `.env`; the server's settings hold them too."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ..defaults import CONCURRENT_REQUESTS, MODEL_PIXELS, REQUEST_SECONDS
from ..errors import ConfigError

__all__ = ["ModelSettings", "load_model_settings", "read_settings"]


class ModelSettings(BaseSettings):
    """How multimodal language models are loaded and asked.

    Environment variables are the field names with `SEGAGENT_` before them, in capitals.
    """

    model_config = SettingsConfigDict(
        env_prefix="SEGAGENT_",
        env_file=".env",
        extra="ignore",
        populate_by_name=True,
        protected_namespaces=(),  # "model_" is a prefix of ours, too
    )

    preset: str = Field(
        "",
        description="How a language model is asked and writes coordinates: segagent, per-mille, pixels or row-column; "
        "by default chosen by the model's type.",
    )
    model_pixels: int = Field(
        MODEL_PIXELS,
        ge=64 * 64,
        description="Larger images are shrunk to this many pixels before a language model sees them.",
    )
    plain_image: bool = Field(
        False, description="Show a language model the image without the mask's tint as well, at twice the cost."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with a Hugging Face model. Only for models you have read."
    )
    openai_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("SEGAGENT_OPENAI_API_KEY", "OPENAI_API_KEY"),
        description="Key for openai: policies; OPENAI_API_KEY is read as well. Only the policy's address gets it.",
    )
    openai_concurrency: int = Field(
        CONCURRENT_REQUESTS, ge=1, le=256, description="Requests to an openai: endpoint at once."
    )
    openai_timeout: float = Field(
        REQUEST_SECONDS, gt=0, description="Seconds an openai: endpoint may take for one answer."
    )

    @classmethod
    def variable(cls, field: str) -> str:
        """The environment variable of a field."""
        alias = cls.model_fields[field].validation_alias
        if isinstance(alias, AliasChoices):
            return next(str(name) for name in alias.choices if str(name).isupper())
        return f"SEGAGENT_{field.upper()}"


_Kind = TypeVar("_Kind", bound=ModelSettings)


def load_model_settings() -> ModelSettings:
    """Settings of the models from the environment and `.env`.

    Raises:
        ConfigError: A value is wrong; the message names the variable and what it must be.
    """
    return read_settings(ModelSettings)


def read_settings(kind: type[_Kind], **values: Any) -> _Kind:
    """Settings of a kind from the environment and `.env`, with `values` on top.

    Raises:
        ConfigError: A value is wrong; the message names the variable and what it must be.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            field = str(problem["loc"][0]) if problem["loc"] else "?"
            field = next((f for f in kind.model_fields if field.lower() == kind.variable(f).lower()), field)
            name = kind.variable(field) if field in kind.model_fields else field
            given = str(problem.get("input"))
            lines.append(f"{name} is {'***' if '@' in given else repr(given)}: {problem['msg']}")
        raise ConfigError("; ".join(lines)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the file .env is not UTF-8: {error}") from error
