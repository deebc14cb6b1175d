"""The models that serve: for every project its newest promoted version, switched without a restart."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from ..agent.agent import SegAgent
from ..errors import ConfigError, SegAgentError
from ..labelstudio.client import LabelStudioClient
from ..labelstudio.images import ImageLoader
from ..policies import load_policy
from ..segmenters import EmbeddingCache, load_segmenter
from ..segmenters.base import Segmenter
from ..training.versions import Version, VersionStore
from .predictor import Predictor, served_as
from .settings import Settings

__all__ = [
    "Models",
    "build_agent",
    "build_client",
    "build_loader",
    "build_predictor",
    "load_version",
    "need_client",
    "project_folder",
    "version_store",
]

log = logging.getLogger(__name__)
_LOADED = 8
"""Projects whose own models are kept in memory."""
_SEEN = 1000
"""Projects that are remembered because somebody asked about them."""


def build_agent(
    settings: Settings, policy: str | None = None, segmenter: Segmenter | None = None,
    cache: EmbeddingCache | None = None,
) -> SegAgent:  # fmt: skip
    """The agent that the settings describe.

    Args:
        settings: Names the models and says how they are used.
        policy: Another policy than the settings'.
        segmenter: A loaded one, to be shared.
        cache: To be shared.

    Raises:
        ConfigError: A model cannot be loaded.
    """
    segmenter = segmenter or load_segmenter(settings.segmenter)
    return SegAgent(
        load_policy(policy or settings.policy, segmenter),
        segmenter,
        max_clicks=settings.max_clicks,
        candidates=settings.candidates,
        beam=settings.beam,
        stop_iou=settings.stop_iou,
        cache=cache
        or EmbeddingCache(
            settings.embedding_cache_bytes, settings.data_dir / "embeddings", settings.embedding_disk_bytes
        ),
    )


def build_client(settings: Settings) -> LabelStudioClient | None:
    """The client of the settings' Label Studio; None without one.

    Raises:
        ConfigError: Its URL is wrong.
    """
    if not settings.label_studio_url:
        return None
    return LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())


def need_client(settings: Settings) -> LabelStudioClient:
    """The client of the settings' Label Studio, for work that cannot do without.

    Raises:
        ConfigError: There is none, or its URL is wrong.
    """
    client = build_client(settings)
    if client is None:
        raise ConfigError("LABEL_STUDIO_URL is not set: say which Label Studio has the project")
    return client


def build_loader(settings: Settings, client: LabelStudioClient | None) -> ImageLoader:
    """What fetches the images of tasks."""
    return ImageLoader(
        client,
        settings.data_dir / "images",
        allowed_hosts=settings.allowed_image_hosts,
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_pixels,
        cache_bytes=settings.image_cache_bytes,
    )


def build_predictor(settings: Settings) -> Predictor:
    """The predictor that the settings describe.

    Raises:
        ConfigError: A model cannot be loaded, or the Label Studio URL is wrong.
    """
    return Predictor(
        build_agent(settings),
        build_loader(settings, build_client(settings)),
        batch_size=settings.batch_size,
        seconds=settings.predict_seconds,
        max_instances=settings.max_instances,
        refine_masks=settings.refine_masks,
    )


def project_folder(settings: Settings, project: int) -> Path:
    """Where images, findings and calibration of a project are."""
    return settings.data_dir / "projects" / str(int(project))


def version_store(settings: Settings) -> VersionStore:
    """Where the versions of all projects are."""
    return VersionStore(settings.data_dir / "models")


def load_version(settings: Settings, base: SegAgent, store: VersionStore, project: int, version: Version) -> SegAgent:
    """The agent of a version; it shares segmenter and cache with `base`.

    Raises:
        ConfigError: It cannot be loaded, or was trained from another model than the one that the settings name.
    """
    if version.start != (base.policy.version, base.segmenter.version):
        raise ConfigError(
            f"version {version.name} of project {project} was trained from other models than those in use "
            f"({settings.policy}, {settings.segmenter}): it is not used; the next training starts from these"
        )
    return build_agent(settings, store.policy_of(project, version), base.segmenter, base.cache)


@dataclass(slots=True)
class _Loaded:
    stamp: int
    predictor: Predictor


class Models:
    """Gives every project its predictor. Safe under threads; a switch never makes a request wait.

    Args:
        settings: Of the server.
        base: With the models that the settings name, for projects without a version of their own.
        store: Of the trained versions.

    Attributes:
        seen: Projects that predictors were asked for since the start.
    """

    def __init__(self, settings: Settings, base: Predictor, store: VersionStore) -> None:
        self.base, self.store, self._settings = base, store, settings
        self.seen: set[int] = set()
        self._loaded: OrderedDict[int, _Loaded] = OrderedDict()
        self._loading: set[int] = set()
        self._lock = threading.Lock()

    def predictor(self, project: int | None) -> Predictor:
        """The predictor of a project: its own version's or, without one, that of the settings' models.

        The first call for a project loads its version; when another one is promoted later on, it is loaded in the
        background while the old one still answers.
        """
        if project is not None and len(self.seen) < _SEEN:
            self.seen.add(project)
        stamp = 0 if project is None else self.store.stamp(project)
        if project is None or stamp == 0:
            return self.base
        with self._lock:
            known = self._loaded.get(project)
            if known is not None:
                self._loaded.move_to_end(project)
                if known.stamp != stamp and project not in self._loading:
                    self._loading.add(project)
                    threading.Thread(target=self._switch, args=(project,), name="model-switch", daemon=True).start()
                return known.predictor
        return self._load(project).predictor

    def versions(self, project: int | None = None) -> list[str]:
        """The model versions of a project (of all without one), newest first, that of the settings' models last."""
        projects = self.store.projects() if project is None else [project]
        made = [v.name for p in projects for v in reversed(self.store.versions(p))]
        names = [served_as(name, self._settings.refine_masks) for name in made]
        return [*dict.fromkeys([*names, self.base.model_version])]

    def serving(self, project: int) -> str | None:
        """The version that serves a project; None where the settings' models do, perhaps as it cannot be used."""
        try:
            name = self.store.current(project)
        except ConfigError as error:
            log.error("%s", error)
            return None
        start = (self.base.agent.policy.version, self.base.agent.segmenter.version)
        return name if any((v.name, v.start) == (name, start) for v in self.store.versions(project)) else None

    def _switch(self, project: int) -> None:
        try:
            self._load(project)
        finally:
            with self._lock:
                self._loading.discard(project)

    def _load(self, project: int) -> _Loaded:
        stamp, predictor = self.store.stamp(project), self.base
        try:
            name = self.store.current(project)
            version = next((v for v in self.store.versions(project) if v.name == name), None)
            if version is not None:
                agent = load_version(self._settings, self.base.agent, self.store, project, version)
                predictor = self.base.with_agent(agent)
                log.info("project %d is served by %s", project, agent.version)
            elif name is not None:
                log.error("version %s of project %d is gone; the settings' models serve it", name, project)
        except SegAgentError as error:
            log.error("%s", error)
        except Exception:
            log.exception("the current version of project %d cannot be loaded; the settings' models serve it", project)
        loaded = _Loaded(stamp, predictor)
        with self._lock:
            self._loaded[project] = loaded
            while len(self._loaded) > _LOADED:
                self._loaded.popitem(last=False)
        return loaded
