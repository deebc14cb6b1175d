"""All settings, each an environment variable; `segagent config` lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from ..defaults import (
    BATCH_SIZE,
    BEAM,
    CANDIDATES,
    EMBEDDING_CACHE_BYTES,
    MAX_CLICKS,
    MAX_INSTANCES,
    PREDICT_SECONDS,
    STOP_IOU,
)
from ..errors import ConfigError
from ..labelstudio.client import origin
from ..policies.settings import ModelSettings, read_settings
from ..quality.issues import Thresholds

__all__ = ["Settings", "load_settings"]


class Settings(ModelSettings):
    """Settings of the server. Environment variables are the field names with `SEGAGENT_` before them, in capitals.

    Label Studio's address and key also go by the names that its own examples use.
    """

    label_studio_url: str = Field(
        "",
        validation_alias=AliasChoices("label_studio_url", "LABEL_STUDIO_URL", "LABEL_STUDIO_HOST"),
        description="Label Studio as seen from this machine, for example http://localhost:8080. Images are fetched "
        "there, and the API key is sent nowhere else.",
    )
    label_studio_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("label_studio_api_key", "LABEL_STUDIO_API_KEY", "LABEL_STUDIO_ACCESS_TOKEN"),
        description="Personal access token or legacy token of a Label Studio user who may read the projects.",
    )
    policy: str = Field("embedded", description="The click policy, by name.")
    segmenter: str = Field("embedded", description="The segmentation tool, by name.")
    max_clicks: int = Field(MAX_CLICKS, ge=0, le=100, description="Clicks the agent may use for an object.")
    candidates: int = Field(
        CANDIDATES,
        ge=1,
        le=32,
        description="Clicks tried at every step, of which the policy's own rating chooses; 1 is greedy.",
    )
    beam: int = Field(BEAM, ge=1, le=32, description="Masks that a search with several candidates goes on from.")
    stop_iou: float = Field(STOP_IOU, gt=0, le=1, description="Predicted IoU at which the agent is content.")
    host: str = Field("0.0.0.0", description="Address to listen on.")
    port: int = Field(9090, ge=1, le=65535, description="Port to listen on.")
    threads: int = Field(16, ge=2, le=512, description="Requests handled at once, cheap ones included.")
    predict_concurrency: int = Field(2, ge=1, le=64, description="Predictions computed at once.")
    predict_queue: int = Field(8, ge=0, description="Predictions that may wait; beyond that the answer is busy (503).")
    predict_seconds: float = Field(
        PREDICT_SECONDS,
        gt=0,
        description="A batch answers after this many seconds with what it has; the other tasks are left without a "
        "prediction, to be retrieved again. Label Studio itself gives up after ML_TIMEOUT_PREDICT (100).",
    )
    batch_size: int = Field(BATCH_SIZE, ge=1, le=1024, description="Tasks whose rollouts run in lockstep.")
    max_instances: int = Field(MAX_INSTANCES, ge=1, description="Objects of one label in one image.")
    refine_masks: bool = Field(
        False,
        description="Retrieve Predictions refines the masks that a task already carries (its newest annotation, or "
        "another model's prediction) where a gain is expected, instead of starting from nothing.",
    )
    data_dir: Path = Field(
        Path("~/.local/share/label-studio-segagent"),
        description="Folder for all that is kept: caches of images and embeddings, the inbox of events, jobs, and of "
        "every project its model versions and findings.",
    )
    allowed_image_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated hosts, besides Label Studio, that task images may come from."
    )
    max_image_bytes: int = Field(64 * 2**20, ge=1, description="Bytes of the largest image file.")
    max_pixels: int = Field(64_000_000, ge=1, le=178_000_000, description="Pixels of the largest image.")
    image_cache_bytes: int = Field(2 * 2**30, ge=0, description="Size of the image cache on disk.")
    embedding_cache_bytes: int = Field(
        EMBEDDING_CACHE_BYTES,
        ge=0,
        description="Memory, of CPU and GPU together, for encoded images, so that each is encoded once.",
    )
    embedding_disk_bytes: int = Field(
        0,
        ge=0,
        description="Size of the folder of encoded images on disk, which outlives restarts; 0 for none. Only the SAM "
        "family uses it, with 4 to 25 MB for an image.",
    )
    prewarm_tasks: int = Field(
        16,
        ge=0,
        description="New tasks that may wait for their images to be loaded and encoded ahead, while no prediction is "
        "running; 0 for none. None either with basic auth but without a webhook secret: anyone could ask for it.",
    )
    train_after: int = Field(
        10,
        ge=0,
        description="New, changed or deleted annotations of a project that start a training of its model; 0 leaves "
        "that to the Start Training button.",
    )
    train_quiet: float = Field(30.0, ge=0, description="Seconds without a new annotation before training starts.")
    train_seconds: float = Field(300.0, gt=0, description="Time budget of one training.")
    qc_on_submit: bool = Field(False, description="Check annotations when they are submitted (quality control).")
    qc_issues: str = Field(
        "",
        description="From which confidence issues are reported, where that is not the default: "
        "missing_object=0.7, tiny_fragment=off.",
    )
    worker: bool = Field(
        True, description="Let `segagent serve` start a worker beside itself. Without one, run `segagent worker`."
    )
    queue_url: SecretStr = Field(
        SecretStr(""),
        description="Where jobs wait: redis://… when web server and workers are on several machines (they must share "
        "SEGAGENT_DATA_DIR, too); empty for a file in SEGAGENT_DATA_DIR.",
    )
    max_request_bytes: int = Field(256 * 2**20, ge=1024, description="Largest request; annotations ride along.")
    basic_auth_user: str = Field("", description="User name that Label Studio must give; empty for none.")
    basic_auth_password: SecretStr = Field(SecretStr(""), description="Password that Label Studio must give.")
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="Value that the header X-SegAgent-Secret of annotation webhooks must have; empty for none.",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @field_validator("allowed_image_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("allowed_image_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if "/" in host or "@" in host:
                raise ValueError(
                    f"{host!r} is no host; write images.example.com, not an address with https:// or a path"
                )
        return value

    @field_validator("label_studio_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if value:
            try:
                origin(value)
            except ConfigError as error:
                raise ValueError(str(error)) from None
            if "@" in value:
                raise ValueError("must not hold a user name or password")
        return value

    @field_validator("qc_issues")
    @classmethod
    def _issues(cls, value: str) -> str:
        try:
            Thresholds(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("data_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
        return value.upper()


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`, with `overrides` on top (None means: not given).

    Raises:
        ConfigError: A value is wrong; the message names the variable and what it must be.
    """
    settings = read_settings(Settings, **{name: value for name, value in overrides.items() if value is not None})
    busy = settings.predict_concurrency + settings.predict_queue
    if settings.threads <= busy:
        raise ConfigError(
            f"SEGAGENT_THREADS is {settings.threads}, but predictions may take SEGAGENT_PREDICT_CONCURRENCY + "
            f"SEGAGENT_PREDICT_QUEUE = {busy} of them; give it at least {busy + 2}, so that /health still answers"
        )
    if bool(settings.basic_auth_user) != bool(settings.basic_auth_password.get_secret_value()):
        raise ConfigError("set both SEGAGENT_BASIC_AUTH_USER and SEGAGENT_BASIC_AUTH_PASSWORD, or neither")
    return settings
