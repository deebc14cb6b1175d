"""Trajectories of a whole data set: in parallel, to be interrupted and gone on with, the same whatever the order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..datasets.record import Record, by_picture
from ..errors import ConfigError, SegAgentError
from ..hlmat.arrays import Mask
from ..hlmat.trajectory import Trajectory, read_trajectories, write_lines
from ..processes import spread
from ..segmenters import Segmenter, load_segmenter
from .trajectories import TrajectorySettings, trajectories_of

__all__ = ["Generated", "generate", "some_masks"]

log = logging.getLogger(__name__)

_Key = tuple[str, int]
"""Kind and number of a trajectory, see `TrajectorySettings.plan`."""
_Task = tuple[list[Record], list[list[_Key]]]
"""The objects on one picture, and of each the trajectories that are missing."""
_Cache = dict[tuple[str, _Key], Trajectory]
_POOL = 5
"""Masks of a picture that are kept for corruptions."""


@dataclass(slots=True)
class Generated:
    """What a run did.

    Attributes:
        objects: Objects of the data set that it came to.
        made: Trajectories that it wrote.
        known: Objects that had all of theirs already.
        empty: Objects without a pixel.
        failures: (object id, reason) of objects that could not be used.
        seconds: How long it took, without loading the segmenter.
    """

    objects: int = 0
    made: int = 0
    known: int = 0
    empty: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class _Outcome:
    """What came of one picture; `lines` are trajectories as JSON."""

    lines: list[str] = field(default_factory=list)
    empty: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Maker:
    tool: Segmenter
    settings: TrajectorySettings
    rules: dict[str, Any]


def generate(
    records: Iterable[Record],
    segmenter: Segmenter | str,
    out: Path,
    settings: TrajectorySettings | None = None,
    *,
    jobs: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Generated:
    """Append the trajectories of all objects to a JSONL file; those that are there already are not made again.

    Killed at any moment, it goes on where it was when called again. What is written depends neither on that nor on the
    number of processes: the seed of an object comes from its mask and the name of its image. The same mask under
    several prompts (the sentences of RefCOCO) is segmented once.

    The meta of each trajectory has `object` (the record's id), `key` (unique over data sets), `kind`, `number`,
    `stopped`, `target` (the true mask), `rules` (settings and version of the segmenter), and what `Record.meta` has.

    Args:
        records: The objects, those on the same picture next to each other.
        segmenter: The tool, by its name, or itself where it works in this process alone (`jobs` 1).
        out: The JSONL file.
        settings: Which trajectories; see `TrajectorySettings`.
        jobs: Processes; each loads the segmenter. A script that asks for several needs `if __name__ == "__main__":`.
        progress: Called with the number of objects that have been dealt with since the last call.

    Raises:
        ConfigError: The segmenter cannot be loaded, the file has trajectories by other rules, or a process died.
        InputError: The file is not one of trajectories.
    """
    settings = settings or TrajectorySettings()
    if jobs < 1 or (jobs > 1 and not isinstance(segmenter, str)):
        raise ConfigError(f"{jobs} processes: it must be 1 or more, and more only with a segmenter given by its name")
    tool = load_segmenter(segmenter) if isinstance(segmenter, str) else segmenter
    maker = _Maker(tool, settings, {"segmenter": tool.version, **settings.rules})
    done = _done(out, maker.rules)
    result, started = Generated(), time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)

    def work() -> Iterator[_Task]:
        for group in by_picture(records):
            missing = [[key for key in settings.plan if (record.key, *key) not in done] for record in group]
            result.objects += len(group)
            result.known += sum(not keys for keys in missing)
            if any(missing):
                yield group, missing
            else:
                progress(len(group))

    def lines() -> Iterator[str]:
        prepare = partial(_prepare, str(segmenter), settings, maker.rules)
        for (group, _), outcome in spread(work(), prepare if jobs > 1 else lambda: partial(_picture, maker), jobs):
            result.made += len(outcome.lines)
            result.empty += outcome.empty
            result.failures += outcome.failures
            yield from outcome.lines
            progress(len(group))

    write_lines(out, lines())
    result.seconds = time.monotonic() - started
    return result


def _done(out: Path, rules: dict[str, Any]) -> set[tuple[str, str, int]]:
    """(key, kind, number) of the trajectories in a file."""
    done = set()
    for trajectory in read_trajectories(out) if out.exists() else ():
        meta = trajectory.meta
        if meta.get("rules") not in (None, rules):
            before = {name: value for name, value in meta["rules"].items() if rules.get(name) != value}
            raise ConfigError(
                f"{out} holds trajectories made with {before}; go on with the same, or write to another file"
            )
        done.add((str(meta.get("key")), str(meta.get("kind")), int(meta.get("number", 0))))
    return done


def _prepare(spec: str, settings: TrajectorySettings, rules: dict[str, Any]) -> Callable[[_Task], _Outcome]:
    """Load the segmenter in a process of its own."""
    return partial(_picture, _Maker(load_segmenter(spec), settings, rules))


def _picture(maker: _Maker, task: _Task) -> _Outcome:
    """The missing trajectories of the objects on one picture."""
    group, missing = task
    out = _Outcome()
    pixels = state = None
    others = some_masks(group)
    made: _Cache = {}
    for record, keys in zip(group, missing, strict=True):
        if not keys:
            continue
        try:
            sample = record.load(pixels)
            pixels = sample.image
            if not (sample.mask if sample.void is None else sample.mask & ~sample.void).any():
                out.empty += 1
                continue
            state = maker.tool.set_image(pixels) if state is None else state
            new = [key for key in keys if (record.outline, key) not in made]
            seed = int(record.outline, 16)
            beside = [mask for outline, mask in others.items() if outline != record.outline]
            for key, trajectory in trajectories_of(sample, maker.tool, state, beside, maker.settings, new, [seed]):
                made[record.outline, key] = trajectory
            out.lines += [
                _named(made[record.outline, key], record, key, maker.rules).to_json()
                for key in keys
                if (record.outline, key) in made
            ]
        except SegAgentError as error:
            out.failures.append((record.id, str(error)))
        except Exception as error:  # of a tool, about one object: the others go on
            log.error("object %s of %s failed", record.id, record.image, exc_info=error)
            out.failures.append((record.id, f"{type(error).__name__}: {error}"))
    return out


def some_masks(group: Sequence[Record]) -> dict[str, Mask]:
    """The masks, bool (H, W), of the first different objects of a picture, by outline; as far as they can be read."""
    masks: dict[str, Mask] = {}
    pixels = None
    for record in group:
        if len(masks) == _POOL:
            break
        try:
            sample = record.load(pixels)
        except SegAgentError:
            continue
        pixels = sample.image
        masks[record.outline] = sample.mask
    return masks


def _named(trajectory: Trajectory, record: Record, key: _Key, rules: dict[str, Any]) -> Trajectory:
    meta = {"object": record.id, "key": record.key, "kind": key[0], "number": key[1], "rules": rules}
    return replace(trajectory, prompt=record.prompt, meta={**trajectory.meta, **record.meta, **meta})
