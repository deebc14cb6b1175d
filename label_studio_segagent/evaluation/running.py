"""The evaluation of a whole data set: in parallel, to be interrupted and gone on with."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..agent.agent import SegAgent
from ..datasets.record import Record, by_picture
from ..errors import ConfigError, InputError
from ..hlmat.trajectory import write_lines
from ..processes import spread
from .measuring import Evaluator, Outcome, Protocol
from .rows import Row

__all__ = ["Evaluated", "chosen", "evaluate", "read_rows", "read_starts"]

_MOST_BYTES = 2**32
"""Of a file of masks to start from."""


@dataclass(slots=True)
class Evaluated:
    """What a run did.

    Attributes:
        rows: Of every object that could be measured, in the order of the data set.
        settings: What the numbers depend on.
        known: Objects that had been measured before.
        empty: Objects without a pixel.
        failures: (object id, reason) of objects that could not be used.
        seconds: How long it took, without loading the models.
    """

    rows: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    known: int = 0
    empty: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def chosen(records: Iterable[Record], limit: int | None, seed: int = 0) -> list[Record]:
    """The records on so many pictures, drawn at random, in their order; all without a limit.

    Pictures are drawn whole: whether a label means one object or several depends on what else is on its picture.
    """
    groups = list(by_picture(records))
    if limit is not None and limit < len(groups):
        places = np.random.default_rng(seed).choice(len(groups), limit, replace=False)
        groups = [groups[place] for place in sorted(places)]
    return [record for group in groups for record in group]


def read_starts(path: Path) -> dict[str, Any]:
    """Masks to start from: a JSON object a line with the `id` of the object and its `mask`, COCO's compressed RLE.

    Raises:
        ConfigError: The file cannot be read, or a line is not such an object.
    """
    starts: dict[str, Any] = {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} has more than {_MOST_BYTES} bytes; give only the masks of this data set")
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                entry = json.loads(line)
                if not isinstance(entry, dict) or "id" not in entry or not isinstance(entry.get("mask"), dict):
                    raise ValueError(f'line {number} is not {{"id": …, "mask": {{"size": …, "counts": …}}}}')
                starts[str(entry["id"])] = entry["mask"]
    except (OSError, RecursionError, ValueError) as error:
        raise ConfigError(f"the masks to start from cannot be read from {path}: {error}") from error
    return starts


def evaluate(
    records: Sequence[Record],
    build: Callable[[], SegAgent],
    out: Path,
    protocol: Protocol | None = None,
    *,
    starts: Mapping[str, Any] | None = None,
    jobs: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluated:
    """Measure an agent on every object; those that have been measured already are not measured again.

    Killed at any moment, it goes on where it was when called again: only times can differ. Into `out` are written
    `settings.json`, `objects.jsonl` (a `Row` a line), `empty.txt` (keys of objects without a pixel), and
    `trajectories.jsonl`, with the rows' keys in the meta.

    Args:
        records: The objects, those on the same picture next to each other.
        build: Makes the agent, in every process; to be pickled when `jobs` > 1.
        out: The folder.
        protocol: What is measured.
        starts: See `Evaluator`.
        jobs: Processes; each builds the agent. A script that asks for several needs `if __name__ == "__main__":`.
        progress: Called with the number of objects that have been dealt with since the last call.

    Raises:
        ConfigError: The agent cannot be built, the folder holds an evaluation with other settings, or a process died.
        InputError: A file in the folder is not what was written there.
    """
    protocol = protocol or Protocol()
    agent = build()
    result = Evaluated(settings=_settings(records, agent, protocol, starts))
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out / "settings.json", result.settings)
    done = read_rows(out / "objects.jsonl")
    empty = set(_whole_lines(out / "empty.txt"))
    result.known = sum(record.key in done for record in records)
    prepare: Callable[[], Callable[[list[Record]], Outcome]] = partial(_prepare, build, protocol, starts)
    if jobs == 1:
        evaluator = Evaluator(agent, protocol, starts)
        prepare = lambda: evaluator.picture  # noqa: E731
    del agent  # one copy less in memory beside those of the processes
    started = time.monotonic()

    def groups() -> Iterator[list[Record]]:
        for group in by_picture(records):
            if all(record.key in done or record.key in empty for record in group):
                progress(len(group))
            else:
                yield group

    # A picture is always measured as a whole: what is in a batch may change the last digits.
    for group, outcome in spread(groups(), prepare, jobs):
        fresh = [(row, trajectory) for row, trajectory in outcome.rows if row.key not in done]
        write_lines(out / "trajectories.jsonl", [trajectory.to_json() for _, trajectory in fresh])
        write_lines(out / "objects.jsonl", [row.to_json() for row, _ in fresh])
        write_lines(out / "empty.txt", [key for key in outcome.empty if key not in empty])
        done |= {row.key: row for row, _ in fresh}
        empty.update(outcome.empty)
        result.failures += outcome.failures
        progress(len(group))
    keys = dict.fromkeys(record.key for record in records)
    result.rows = [done[key] for key in keys if key in done]
    result.empty = len(empty.intersection(keys))
    result.seconds = time.monotonic() - started
    return result


def _prepare(
    build: Callable[[], SegAgent], protocol: Protocol, starts: Mapping[str, Any] | None
) -> Callable[[list[Record]], Outcome]:
    return Evaluator(build(), protocol, starts).picture


def _settings(
    records: Sequence[Record], agent: SegAgent, protocol: Protocol, starts: Mapping[str, Any] | None
) -> dict[str, Any]:
    digest = hashlib.blake2b(" ".join(record.key for record in records).encode(), digest_size=8).hexdigest()
    given = None if starts is None else hashlib.blake2b(json.dumps(starts).encode(), digest_size=8).hexdigest()
    return {
        "agent": agent.version, "policy": agent.policy.version, "segmenter": agent.segmenter.version,
        "max_clicks": agent.max_clicks, "candidates": agent.candidates, "beam": agent.beam,
        "stop_iou": agent.stop_iou, **asdict(protocol), "starts": given, "objects": len(records), "digest": digest,
    }  # fmt: skip


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(settings, indent=2), "utf-8")
        fresh.replace(path)  # a kill leaves all of it or nothing
        return
    try:
        before = json.loads(path.read_text("utf-8"))
        other = {name: before.get(name) for name in settings if before.get(name) != settings[name]}
    except (AttributeError, ValueError) as error:
        raise InputError(f"{path} is not what an evaluation wrote ({error}); name another folder") from error
    if other:
        raise ConfigError(
            f"{path.parent} holds an evaluation with other settings: {other}, now "
            f"{ {name: settings[name] for name in other} }; go on with the same, or name another folder"
        )


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of a file by key; a last line that was cut short is left out.

    Raises:
        InputError: Another line is not a row.
    """
    rows = [Row.from_json(line) for line in _whole_lines(path)]
    return {row.key: row for row in rows}


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [line.decode("utf-8", "replace").rstrip("\n") for line in file if line.endswith(b"\n")]
