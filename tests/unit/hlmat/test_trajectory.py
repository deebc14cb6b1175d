from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from label_studio_segagent.errors import InputError
from label_studio_segagent.hlmat.actions import Click, Finish
from label_studio_segagent.hlmat.trajectory import (
    Sample,
    Step,
    Trajectory,
    decode_mask,
    encode_mask,
    read_trajectories,
    write_lines,
    write_trajectories,
)

bool_masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20))


def example(prompt: str = "Pferd 🐎 слева, “left”\n\u2028", steps: int = 3) -> Trajectory:
    rng = np.random.default_rng(0)
    masks = [rng.random((7, 11)) > 0.5 for _ in range(steps)]
    actions = [Click(3.25, 4, True), Click(10, 6, False), None, Finish()]
    return Trajectory(
        prompt,
        image="s3://bucket/ü.jpg",
        box=(1.0, 2.5, 9.0, 6.0),
        steps=[
            Step(mask, action, 0.1 * i, None if i else 0.3, text=f"Current IOU: {i}\nFinish", undone=i == 1)
            for i, (mask, action) in enumerate(zip(masks, actions, strict=False))
        ],
        meta={"stopped": "finish", "nested": {"a": [1, None, "ß"]}},
    )


def same(first: Trajectory, second: Trajectory) -> bool:
    def key(t: Trajectory) -> object:
        steps = [
            (s.mask.shape, s.mask.tolist(), s.action, s.predicted_iou, s.true_iou, s.text, s.undone) for s in t.steps
        ]
        return t.prompt, t.image, t.box, steps, t.meta

    return key(first) == key(second)


@given(bool_masks)
def test_mask_round_trip_through_json(mask: np.ndarray) -> None:
    got = decode_mask(json.loads(json.dumps(encode_mask(mask))))
    assert got.dtype == bool and got.shape == mask.shape
    assert np.array_equal(got, mask)


@given(bool_masks)
def test_masks_are_read_as_pycocotools_does(mask: np.ndarray) -> None:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle["counts"].decode() == encode_mask(mask)["counts"]
    assert np.array_equal(decode_mask(encode_mask(mask)), coco_mask.decode(rle).astype(bool))


def test_large_mask_round_trip() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[100:2900, 1:3999] = True
    mask[1500, 2000] = False
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": "4"},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": "3"},  # one pixel short: pycocotools would leave memory as it is
        {"size": [2, 2], "counts": "5"},
        {"size": [2, 2], "counts": "P"},  # a number that goes on, but the text ends
        {"size": [2, 2], "counts": "o" * 30},
        {"size": [2, 2], "counts": "ü"},
        {"size": [2, 2], "counts": "\x00"},
        {"size": [2, 2], "counts": None},
        {"size": [2, 2], "counts": [4]},
        {"size": [-2, -2], "counts": "4"},
        {"size": [10**9, 10**9], "counts": "4"},  # pycocotools crashes the process
        {"size": ["a", 2], "counts": "4"},
        {"size": [float("nan"), 2], "counts": "4"},
        {"size": [float("inf"), 2], "counts": "4"},
        {"size": [2, 2], "counts": "5O"},  # a negative run makes up for one too long
        None,
        "4",
    ],
)
def test_what_is_no_mask(rle: object) -> None:
    with pytest.raises(InputError, match="not a COCO RLE mask"):
        decode_mask(rle)  # type: ignore[arg-type]


@given(st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=12), st.integers(0, 6), st.integers(0, 6))
def test_any_counts_are_a_mask_or_an_input_error(counts: str, height: int, width: int) -> None:
    try:
        mask = decode_mask({"size": [height, width], "counts": counts})
    except InputError:
        return
    assert mask.shape == (height, width) and mask.dtype == bool


def test_round_trip_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    written = [example(), Trajectory(""), example("second", 4), example("half a pair \ud83d")]
    write_trajectories(path, written[:1])
    write_trajectories(path, iter(written[1:]))
    assert len(path.read_bytes().splitlines()) == 4
    got = list(read_trajectories(path))
    assert len(got) == 4 and all(map(same, got, written))
    assert [type(step.action) for step in got[2].steps] == [Click, Click, type(None), Finish]
    assert isinstance(got[0].box, tuple)


@given(
    st.text(),
    st.lists(
        st.tuples(
            bool_masks,
            st.none() | st.just(Finish()) | st.builds(Click, st.floats(-9, 9), st.floats(-9, 9), st.booleans()),
            st.none() | st.floats(0, 1),
            st.text(max_size=20),
            st.booleans(),
        ),
        max_size=3,
    ),
)
def test_round_trip_of_any_trajectory(prompt: str, steps: list[tuple]) -> None:
    trajectory = Trajectory(prompt, steps=[Step(m, a, p, p, text=t, undone=u) for m, a, p, t, u in steps])
    line = trajectory.to_json()
    assert "\n" not in line
    assert same(Trajectory.from_json(line), trajectory)


def test_kept_clicks() -> None:
    assert example(steps=4).clicks == [Click(3.25, 4, True)]  # the second was undone, the rest are no clicks


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_last_line_cut_short_is_skipped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example("one"), example("two")])
    path.write_bytes(path.read_bytes()[:-1][:-cut])
    assert [t.prompt for t in read_trajectories(path)] == ["one"]


def test_cut_inside_a_character(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example("one"), example("zwei 🐎")])
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex("🐎".encode()) + 2])
    assert [t.prompt for t in read_trajectories(path)] == ["one"]


def test_only_the_line_feed_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example("one"), example("two")])
    path.write_bytes(path.read_bytes()[:-1])
    assert [t.prompt for t in read_trajectories(path)] == ["one", "two"]
    write_trajectories(path, [example("three")])
    assert [t.prompt for t in read_trajectories(path)] == ["one", "two", "three"]


def test_writing_goes_on_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example("one"), example("two")])
    path.write_bytes(path.read_bytes()[:-50])
    write_trajectories(path, [example("three")])
    assert [t.prompt for t in read_trajectories(path)] == ["one", "three"]


def test_nothing_but_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "ab')
    assert list(read_trajectories(path)) == []
    write_trajectories(path, [example("one")])
    assert [t.prompt for t in read_trajectories(path)] == ["one"]


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"prompt": "x", "image": "", "box": null, "steps": [5], "meta": {}}',
        b"[" * 100_000,
    ],
    ids=lambda line: repr(line[:12]),
)
def test_a_bad_line_in_the_middle_is_named(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example("one"), example("two"), example("three")])
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], bad, lines[2]]) + b"\n")
    reader = read_trajectories(path)
    assert next(reader).prompt == "one"
    with pytest.raises(InputError, match="line 2") as caught:
        next(reader)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("action", "click"), ("action", []), ("action", {"x": 1}), ("mask", None), ("mask", {"size": [2, 2]})],
)
def test_a_bad_step_is_an_input_error(field: str, value: object) -> None:
    fields = json.loads(example().to_json())
    fields["steps"][1][field] = value
    with pytest.raises(InputError):
        Trajectory.from_json(json.dumps(fields))


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [example("one")])
    path.write_bytes(path.read_bytes() + b"broken\n")
    assert next(read_trajectories(path)).prompt == "one"


def test_sample_defaults() -> None:
    sample = Sample(np.zeros((2, 2, 3), np.uint8), "cat", np.zeros((2, 2), bool))
    assert sample.void is None and sample.id == ""
    with pytest.raises(AttributeError):
        sample.prompt = "dog"  # type: ignore[misc]


def test_the_target_is_the_true_mask_where_it_is_known() -> None:
    trajectory = example()
    last = trajectory.steps[-1].mask
    assert trajectory.target is last
    trajectory.meta["target"] = encode_mask(~last)
    again = Trajectory.from_json(trajectory.to_json())
    assert again.target is not None and np.array_equal(again.target, ~last)
    trajectory.meta["target"] = "no mask"
    with pytest.raises(InputError, match="RLE"):
        _ = trajectory.target
    assert Trajectory("nothing").target is None


@pytest.mark.parametrize("length", [10, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
@pytest.mark.parametrize("ended", [True, False])
def test_only_the_end_of_a_file_is_mended(tmp_path: Path, length: int, ended: bool) -> None:
    path = tmp_path / "t.jsonl"
    first, last = Trajectory("x" * length), Trajectory("y" * (2 * length))
    write_trajectories(path, [first, last])
    if not ended:
        path.write_bytes(path.read_bytes()[:-2])
    write_trajectories(path, [example("three")])
    assert [t.prompt[:1] for t in read_trajectories(path)] == (["x", "y", "t"] if ended else ["x", "t"])


def test_a_line_is_on_disk_before_the_next_is_made(tmp_path: Path) -> None:
    path, seen = tmp_path / "t.jsonl", []

    def lines() -> Iterator[str]:
        for number in range(3):
            seen.append(path.read_bytes().count(b"\n"))
            yield Trajectory(str(number)).to_json()

    write_lines(path, lines())
    assert seen == [0, 1, 2]
