from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from label_studio_segagent import SegAgent, load_policy, load_segmenter
from label_studio_segagent.datasets import Record
from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.evaluation.measuring import Evaluator, Protocol
from label_studio_segagent.evaluation.report import draw
from label_studio_segagent.evaluation.rows import Row
from label_studio_segagent.evaluation.running import Evaluated, chosen, evaluate, read_rows, read_starts
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import decode_mask, encode_mask, read_trajectories
from label_studio_segagent.policies.oracle import OraclePolicy
from label_studio_segagent.policies.saliency import SaliencyPolicy


def build(clicks: int = 3) -> SegAgent:
    segmenter = load_segmenter("grabcut")
    return SegAgent(load_policy("saliency", segmenter), segmenter, clicks)


def timeless(done: Evaluated) -> list[Row]:
    return [replace(row, seconds=0.0) for row in done.rows]


def test_every_object_gets_its_row(records: list[Record], tmp_path: Path) -> None:
    seen: list[int] = []
    done = evaluate(records, build, tmp_path / "o", Protocol(blind=True, noc=True), progress=seen.append)
    assert [row.id for row in done.rows] == ["0", "1", "2", "3"] and done.empty == 1 and sum(seen) == 5
    assert (done.known, done.failures) == (0, [])
    trajectories = {t.meta["key"]: t for t in read_trajectories(tmp_path / "o" / "trajectories.jsonl")}
    for row, record in zip(done.rows, records, strict=False):
        truth, result = decode_mask(record.mask), decode_mask(trajectories[row.key].meta["result"])
        assert row.iou == iou(result, truth) == row.rated[-1] == row.intersection / row.union
        assert row.share == truth.mean() and row.seconds > 0 and len(row.ious) == row.clicks + 1 <= 4
        assert row.blind and row.noc and row.noc_jittered and np.array_equal(trajectories[row.key].target, truth)
        assert draw(row, trajectories[row.key]).shape[2] == 3
    assert done.rows[0].iou > 0.8
    assert read_rows(tmp_path / "o" / "objects.jsonl") == {row.key: row for row in done.rows}


def test_instances_of_a_label_are_matched_and_expressions_are_not(records: list[Record]) -> None:
    samples = [record.load() for record in records[:4]]
    agent = SegAgent(OraclePolicy(samples), load_segmenter("grabcut"))
    both = Evaluator(agent, Protocol()).picture(records[1:3])
    assert [row.iou > 0.9 for row, _ in both.rows] == [True, True]
    # The policy knows one of them only: the other one is not found.
    half = Evaluator(SegAgent(OraclePolicy(samples[1:2]), agent.segmenter), Protocol()).picture(records[1:3])
    assert half.rows[0][0].iou > 0.9
    assert (half.rows[1][0].stopped, half.rows[1][0].iou, half.rows[1][0].ious) == ("not found", 0.0, [0.0])
    assert draw(*half.rows[1]).shape[2] == 3
    alone = [replace(record, meta={"expression": True}) for record in records[1:3]]
    asked = Evaluator(agent, Protocol()).picture(alone)
    best = [row.iou > 0.9 for row, _ in asked.rows]
    assert sorted(best) == [False, True], "the same expression gets the same answer"


def test_the_same_after_a_cut_and_with_processes(records: list[Record], tmp_path: Path) -> None:
    whole = evaluate(records, build, tmp_path / "a", Protocol(blind=True))
    spread = evaluate(records, build, tmp_path / "b", Protocol(blind=True), jobs=2)
    assert timeless(whole) == timeless(spread)
    for name in ("objects.jsonl", "trajectories.jsonl"):
        content = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes(content[: len(content) * 2 // 3])
    again = evaluate(records, build, tmp_path / "a", Protocol(blind=True))
    assert 0 < again.known < 4 and timeless(again) == timeless(whole) and again.empty == 1
    last = evaluate(records, build, tmp_path / "a", Protocol(blind=True))
    assert last.known == 4 and last.rows == again.rows and last.empty == 1
    assert len({t.meta["key"] for t in read_trajectories(tmp_path / "a" / "trajectories.jsonl")}) == 4


def test_other_settings_are_refused(records: list[Record], tmp_path: Path) -> None:
    evaluate(records[:1], build, tmp_path)
    for other in (
        partial(evaluate, records[:1], partial(build, 2), tmp_path),
        partial(evaluate, records[:2], build, tmp_path),
        partial(evaluate, records[:1], build, tmp_path, Protocol(noc=True)),
        partial(evaluate, records[:1], build, tmp_path, Protocol(start="corrupted")),
    ):
        with pytest.raises(ConfigError, match="other settings: .* name another folder"):
            other()
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(InputError, match="not what an evaluation wrote"):
        evaluate(records[:1], build, tmp_path)


def test_damaged_rows_are_named(records: list[Record], tmp_path: Path) -> None:
    evaluate(records[:1], build, tmp_path)
    (tmp_path / "objects.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(InputError, match="not a row of an evaluation"):
        evaluate(records[:1], build, tmp_path)


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(records: list[Record], tmp_path: Path) -> None:
    class Failing(SaliencyPolicy):
        def locate_batch(self, items: Sequence[tuple[Any, str]]) -> Any:
            if any(prompt == "円盤" for _, prompt in items):
                raise RuntimeError("out of memory")
            return super().locate_batch(items)

    beside = replace(records[3], id="beside", prompt="something")
    broken = [replace(records[0], id="broken", mask="what?"), *records, beside]
    broken.append(replace(records[0], id="missing", image=tmp_path / "missing.png"))
    done = evaluate(broken, lambda: SegAgent(Failing(), load_segmenter("grabcut"), 2), tmp_path / "o")
    assert [row.id for row in done.rows] == ["0", "1", "2", "beside"]
    reasons = dict(done.failures)
    assert set(reasons) == {"broken", "3", "missing"} and reasons["3"] == "RuntimeError: out of memory"
    assert "missing.png" in reasons["missing"]


def test_corrupted_and_given_masks(records: list[Record], tmp_path: Path) -> None:
    first = evaluate(records, build, tmp_path / "a", Protocol(start="corrupted"))
    again = evaluate(records[1:], build, tmp_path / "b", Protocol(start="corrupted"))
    other = evaluate(records, build, tmp_path / "c", Protocol(start="corrupted", seed=1))
    starts = [row.ious[0] for row in first.rows]
    assert all(0 <= value < 1 for value in starts) and starts != [row.ious[0] for row in other.rows]
    assert timeless(first)[1:] == timeless(again)
    file = tmp_path / "masks.jsonl"
    half = decode_mask(records[0].mask)
    half[:, 25:] = False
    lines = [{"id": 0, "mask": encode_mask(half)}, {"id": "3", "mask": encode_mask(half[:9])}]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    given = evaluate(records[:4], build, tmp_path / "d", Protocol(start="masks"), starts=read_starts(file))
    assert [row.id for row in given.rows] == ["0"]
    assert given.rows[0].ious[0] == iou(half, decode_mask(records[0].mask))
    reasons = dict(given.failures)
    assert "no mask is given for object 1" in reasons["1"] and "is (9, 100), its image (70, 100)" in reasons["3"]


@pytest.mark.parametrize("content", ["[]", '{"id": 1}', "{", '{"id": 1, "mask": "x"}', "[" * 100_000])
def test_files_of_masks_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(ConfigError, match="cannot be read from"):
        read_starts(tmp_path / "m.jsonl")
    with pytest.raises(ConfigError, match="cannot be read from"):
        read_starts(tmp_path / "nowhere.jsonl")


def test_random_pictures_with_all_their_objects(records: list[Record]) -> None:
    many = [
        replace(records[0], id=f"{picture}/{place}", image=Path(f"{picture}.png"))
        for picture in range(100)
        for place in range(2)
    ]
    some = chosen(many, 10)
    places = [many.index(record) for record in some]
    assert places == sorted(set(places)) and len(places) == 20 and places != list(range(20))
    assert all(place + 1 in places for place in places if place % 2 == 0)
    assert some == chosen(many, 10) != chosen(many, 10, seed=1)
    assert chosen(many, None) == many == chosen(iter(many), 200)


def test_a_killed_run_goes_on(records: list[Record], tmp_path: Path) -> None:
    many = [
        replace(records[0], id=str(number), image=records[number % 3 and 1].image.with_name(f"copy {number}.png"))
        for number in range(60)
    ]
    for record in many:
        record.image.write_bytes(records[0].image.read_bytes())
    listed = [[str(r.image), r.prompt, r.mask, r.id] for r in many]
    (tmp_path / "records.json").write_text(json.dumps(listed))
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\nfrom pathlib import Path\n"
        "from label_studio_segagent import SegAgent, load_policy, load_segmenter\n"
        "from label_studio_segagent.datasets.record import Record\n"
        "from label_studio_segagent.evaluation.running import evaluate\n"
        "def build():\n"
        "    tool = load_segmenter('grabcut')\n"
        "    return SegAgent(load_policy('saliency', tool), tool, 3)\n"
        "if __name__ == '__main__':\n"
        "    records = [Record(Path(i), p, m, n) for i, p, m, n in json.loads(Path(sys.argv[1]).read_text())]\n"
        "    evaluate(records, build, Path(sys.argv[2]))\n"
    )
    out = tmp_path / "o"
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "records.json"), str(out)], env=os.environ)
    deadline, file = time.monotonic() + 60, out / "objects.jsonl"
    while not (file.exists() and file.read_bytes().count(b"\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert 3 < file.read_bytes().count(b"\n") < 60
    again = evaluate(many, build, out)
    assert 3 < again.known < 60
    assert timeless(again) == timeless(evaluate(many, build, tmp_path / "whole"))


def test_rows_survive_json(records: list[Record], tmp_path: Path) -> None:
    [row] = evaluate(records[3:4], build, tmp_path).rows
    assert Row.from_json(row.to_json()) == row and json.loads(row.to_json()) == asdict(row)
