"""The agent over many rollouts: batches, instances, scores, a person's clicks, threads, versions, the cache."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from label_studio_segagent import Click, Finish, SegAgent, load_policy, load_segmenter
from label_studio_segagent.agent.agent import _IN_FLIGHT
from label_studio_segagent.errors import ConfigError, InputError
from label_studio_segagent.hlmat.actions import GRAMMARS
from label_studio_segagent.hlmat.metrics import iou
from label_studio_segagent.hlmat.trajectory import Sample
from label_studio_segagent.policies import Decision, Observation, Policy, Target
from label_studio_segagent.policies.oracle import OraclePolicy
from label_studio_segagent.segmenters import EmbeddingCache, ImageState, Query, Segmentation, Segmenter


class Discs(Segmenter):
    """Every positive click adds a disc, every negative one removes one; a box adds itself. Counts its calls."""

    def __init__(self, version: str = "discs") -> None:
        self.version, self.encoded, self.batches = version, 0, []

    def set_image(self, image: np.ndarray) -> ImageState:
        self.encoded += 1
        return ImageState(image, int(image.sum()))

    def predict(
        self, state: ImageState, clicks: Sequence[Click], *, box: Any = None, prior: Any = None
    ) -> Segmentation:
        mask = prior.copy() if prior is not None and prior.dtype == bool else np.zeros(state.size, bool)
        if box is not None:
            x0, y0, x1, y1 = map(int, box)
            mask[y0:y1, x0:x1] = True
        y, x = np.mgrid[: state.size[0], : state.size[1]]
        for click in clicks:
            mask[np.hypot(x - click.x, y - click.y) < 6] = click.positive
        return Segmentation(mask, 0.625, np.where(mask, 1, -1).astype(np.float32))

    def predict_batch(self, queries: Sequence[Query]) -> list[Segmentation]:
        self.batches.append(len(queries))
        return super().predict_batch(queries)


class Counting(OraclePolicy):
    """The oracle, with its calls counted."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__(samples)
        self.calls: list[int] = []
        self.located: list[int] = []

    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        self.calls.append(len(observations))
        return super().act(observations)

    def locate_batch(self, items: Any) -> list[list[Target]]:
        self.located.append(len(items))
        return super().locate_batch(items)


class Fixed(Policy):
    """Locates given targets; gives every mask the same rating, or that of `rate`."""

    grammar = GRAMMARS["segagent"]()

    def __init__(self, targets: Sequence[Target] = (), rating: float | None = 0.5, version: str = "fixed") -> None:
        self.targets, self.rating, self.version = list(targets), rating, version
        self.seen: list[Observation] = []

    def locate_batch(self, items: Any) -> list[list[Target]]:
        return [self.targets for _ in items]

    def act(self, observations: Sequence[Observation]) -> list[Decision]:
        self.seen += observations
        return [Decision(Finish(), self.rate(seen), "said nothing of use") for seen in observations]

    def rate(self, seen: Observation) -> float | None:
        return self.rating


def sample(parts: int, number: int) -> Sample:
    """`parts` bars to click at, on an image of its own size."""
    height, width = 40 + number, 90
    mask = np.zeros((height, width), bool)
    for part in range(parts):
        mask[8:30, 5 + 28 * part : 17 + 28 * part] = True
    image = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(image, f"bars {number}", mask, id=str(number))


IMAGE = np.random.default_rng(9).integers(0, 256, (40, 90, 3), dtype=np.uint8)


def test_lockstep_is_the_same_as_one_by_one_with_one_policy_call_a_step() -> None:
    samples = [sample(parts, number) for number, parts in enumerate((1, 3, 2, 1))]
    items = [(s.image, s.prompt) for s in samples]

    def agent() -> tuple[SegAgent, Counting, Discs]:
        policy, tool = Counting(samples), Discs()
        return SegAgent(policy, tool, max_clicks=9), policy, tool

    together, policy, tool = agent()
    batch = together.segment_batch(items)
    alone, single_policy, _ = agent()
    singles = []
    lengths = []
    for item in items:
        before = len(single_policy.calls)
        singles.append(alone.segment(*item))
        lengths.append(len(single_policy.calls) - before)

    assert len(set(lengths)) > 1, "the rollouts must end at different times for this test to mean anything"
    for got, expected in zip(batch, singles, strict=True):
        assert np.array_equal(got.mask, expected.mask)
        assert (got.predicted_iou, got.stopped, got.target) == (
            expected.predicted_iou, expected.stopped, expected.target,
        )  # fmt: skip
        assert got.trajectory.to_json() == expected.trajectory.to_json()
    # In step i those are asked whose rollout has at least i answers; no more calls than the longest needs.
    assert policy.calls == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert policy.located == [4]
    assert len(tool.batches) == max(lengths)


def test_rollouts_that_end_make_room_for_the_next() -> None:
    """More items than fit: their images are encoded when their turn comes, and the answers keep their order."""
    samples = [sample(1 + number % 3, number) for number in range(_IN_FLIGHT + 9)]
    items = [(s.image, s.prompt) for s in samples]
    policy, tool = Counting(samples), Discs()
    batch = SegAgent(policy, tool, max_clicks=9).segment_batch(items)
    alone = SegAgent(Counting(samples), Discs(), max_clicks=9)
    assert all(np.array_equal(r.mask, alone.segment(*item).mask) for r, item in zip(batch, items, strict=True))
    assert policy.located == [_IN_FLIGHT, 9]
    assert max(policy.calls) == _IN_FLIGHT
    # Waiting for the longest of the first ones would have left room unused.
    assert len(policy.calls) < 2 * max(len(r.trajectory.steps) for r in batch)


def test_a_batch_answers_in_order_with_gaps() -> None:
    first, second = sample(1, 1), sample(2, 2)
    agent = SegAgent(OraclePolicy([first, second]), Discs())
    items = [(second.image, second.prompt), (first.image, "something else"), (first.image, first.prompt)]
    rollouts = agent.segment_batch(items)
    assert [r.trajectory.prompt for r in rollouts] == [second.prompt, "something else", first.prompt]
    assert [r.mask.shape for r in rollouts] == [second.mask.shape, first.mask.shape, first.mask.shape]
    assert [r.target is None for r in rollouts] == [False, True, False]
    assert [bool(r.mask.any()) for r in rollouts] == [True, False, True] and rollouts[1].stopped == "finish"
    assert agent.segment_batch([]) == [] and agent.segment_all_batch([]) == []


def test_only_the_best_target_is_segmented() -> None:
    targets = [Target((0, 0, 20, 20), None, 0.9), Target((50, 0, 80, 20), None, 0.5)]
    policy = Fixed(targets)
    rollout = SegAgent(policy, Discs()).segment(IMAGE, "x")
    assert rollout.target == targets[0] and len(policy.seen) == 1
    assert rollout.mask[:20, :20].all() and not rollout.mask[:, 50:].any()


class ByArea(Fixed):
    """Rates larger masks higher."""

    def rate(self, seen: Observation) -> float:
        return float(seen.mask.mean())


def test_all_instances_best_first_each_once() -> None:
    boxes = [(0, 0, 10, 10), (40, 0, 70, 30), (41, 0, 70, 30), (0, 12, 20, 35), (80, 35, 80, 35)]
    agent = SegAgent(ByArea([Target(box, None, 0.5) for box in boxes]), Discs())
    rollouts = agent.segment_all(IMAGE, "x")
    assert [r.target.box for r in rollouts if r.target] == [boxes[1], boxes[3], boxes[0]]
    ratings = [r.predicted_iou for r in rollouts]
    assert ratings == sorted(ratings, reverse=True)


@pytest.mark.parametrize(("shift", "count"), [(4, 1), (6, 2)])
def test_what_counts_as_the_same_object(shift: int, count: int) -> None:
    """30 columns wide: shifted by 4 their IoU is 26/34 = 0.76, by 6 it is 24/36 = 0.67."""
    boxes = [(10, 0, 40, 30), (10 + shift, 0, 40 + shift, 30)]
    assert len(SegAgent(Fixed([Target(box, None, 0.5) for box in boxes]), Discs()).segment_all(IMAGE, "x")) == count


def test_no_instances() -> None:
    agent = SegAgent(Fixed([]), Discs())
    assert agent.segment_all(IMAGE, "x") == []
    assert agent.segment_all_batch([(IMAGE, "x"), (IMAGE, "y")]) == [[], []]


def test_score_is_the_rating_of_the_mask_given() -> None:
    mask = np.zeros((40, 90), bool)
    mask[:10, :45] = True
    policy = ByArea()
    assert SegAgent(policy, Discs()).score(IMAGE, "horse", mask) == 0.125
    seen = policy.seen[0]
    assert seen.prompt == "horse" and np.array_equal(seen.mask, mask) and np.array_equal(seen.image, IMAGE)


def test_score_without_a_rating() -> None:
    agent = SegAgent(Fixed(rating=None), Discs())
    with pytest.raises(InputError, match="'horse'.*said nothing of use"):
        agent.score(IMAGE, "horse", np.zeros((40, 90), bool))


@pytest.mark.parametrize(
    "mask",
    [np.zeros((90, 40), bool), np.zeros((40, 90), np.uint8), np.zeros((40, 90, 1), bool), np.zeros((40, 90), float)],
)
def test_masks_that_do_not_fit(mask: np.ndarray) -> None:
    agent = SegAgent(Fixed(), Discs())
    for call in (agent.score, agent.refine):
        with pytest.raises(InputError, match=r"\(40, 90\)"):
            call(IMAGE, "x", mask)
    with pytest.raises(InputError, match=r"\(40, 90\)"):
        agent.follow(IMAGE, "x", [], prior=mask)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_images_that_are_none(image: np.ndarray) -> None:
    agent = SegAgent(Fixed(), Discs())
    mask = np.zeros(image.shape[:2], bool)
    for call in (
        lambda: agent.segment(image, "x"),
        lambda: agent.segment_all(image, "x"),
        lambda: agent.segment_batch([(IMAGE, "x"), (image, "x")]),
        lambda: agent.refine(image, "x", mask),
        lambda: agent.score(image, "x", mask),
        lambda: agent.follow(image, "x", []),
    ):
        with pytest.raises(InputError):
            call()


def test_follow_gives_the_tool_all_that_a_person_gave() -> None:
    prior = np.zeros((40, 90), bool)
    prior[30:40, 80:90] = True
    clicks = [Click(20, 20), Click(23, 20, False)]
    policy = ByArea()
    rollout = SegAgent(policy, Discs()).follow(IMAGE, "x", clicks, box=(50, 0, 60, 10), prior=prior)
    expected = Discs().predict(ImageState(IMAGE), clicks, box=(50, 0, 60, 10), prior=prior).mask
    assert np.array_equal(rollout.mask, expected) and expected[0, 50] and expected[35, 85] and expected[20, 15]
    assert rollout.predicted_iou == expected.mean() and rollout.stopped == "given"
    assert len(policy.seen) == 1 and policy.seen[0].box == (50, 0, 60, 10)
    assert rollout.trajectory.meta["clicks"] == [(20, 20, True), (23, 20, False)]


def test_follow_falls_back_to_the_tools_own_score() -> None:
    assert SegAgent(Fixed(rating=None), Discs()).follow(IMAGE, "x", [Click(5, 5)]).predicted_iou == 0.625
    assert SegAgent(Fixed(rating=0.0), Discs()).follow(IMAGE, "x", [Click(5, 5)]).predicted_iou == 0.0


def test_every_rollout_names_the_model_version_and_why_it_stopped() -> None:
    agent = SegAgent(Fixed([Target((0, 0, 9, 9), None, 1.0)]), Discs())
    nothing = SegAgent(Fixed(), Discs())
    mask = np.zeros((40, 90), bool)
    for rollout in (agent.segment(IMAGE, "x"), agent.refine(IMAGE, "x", mask), agent.follow(IMAGE, "x", [])):
        assert rollout.trajectory.meta["model_version"] == agent.version
        assert rollout.trajectory.meta["stopped"] == rollout.stopped
    assert nothing.segment(IMAGE, "x").trajectory.meta == {"stopped": "finish", "model_version": nothing.version}


def test_version_changes_with_every_setting() -> None:
    agents = [
        SegAgent(Fixed(), Discs()),
        SegAgent(Fixed(version="other"), Discs()),
        SegAgent(Fixed(), Discs("other")),
        SegAgent(Fixed(), Discs(), max_clicks=6),
        SegAgent(Fixed(), Discs(), stop_iou=0.9),
        SegAgent(Fixed(), Discs(), time_budget=5.0),
    ]
    assert len({agent.version for agent in agents}) == len(agents)
    assert SegAgent(Fixed(), Discs()).version == agents[0].version == SegAgent(Fixed(), Discs(), 7, 1).version


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_clicks": -1}, "max_clicks is -1"),
        ({"candidates": 0}, "candidates is 0"),
        ({"beam": 2}, "beam is 2 with 1 candidates"),
        ({"candidates": 3, "beam": 0}, "beam is 0"),
        ({"candidates": 3, "tool_calls": 0}, "tool_calls is 0"),
        ({"stop_iou": 0.0}, "stop_iou is 0"),
        ({"stop_iou": 1.01}, "stop_iou is 1.01"),
        ({"stop_iou": float("nan")}, "stop_iou is nan"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        SegAgent(Fixed(), Discs(), **settings)


def test_an_image_is_encoded_once() -> None:
    tool = Discs()
    agent = SegAgent(Fixed([Target((0, 0, 9, 9), None, 1.0)]), tool)
    mask = np.zeros((40, 90), bool)
    agent.segment(IMAGE, "x"), agent.segment_all(IMAGE.copy(), "y"), agent.refine(IMAGE, "x", mask)
    agent.score(IMAGE, "x", mask), agent.follow(np.asfortranarray(IMAGE), "x", [])
    assert tool.encoded == 1
    agent.segment(IMAGE[::-1], "x")
    assert tool.encoded == 2
    agent.segment(IMAGE.reshape(90, 40, 3), "x")  # the same bytes in another shape
    assert tool.encoded == 3


def test_agents_can_share_a_cache_and_fill_it_ahead() -> None:
    tool, cache = Discs(), EmbeddingCache()
    one, two = SegAgent(Fixed(), tool, cache=cache), SegAgent(Fixed(), tool, cache=cache)
    images = [np.full((2, 2, 3), value, np.uint8) for value in range(3)]
    one.prewarm(iter(images))
    assert tool.encoded == 3
    two.segment(images[1].copy(), "x")
    assert tool.encoded == 3 and cache.stats.hits == 1


def test_an_image_that_is_drawn_on_later_is_another_image() -> None:
    policy = ByArea()
    agent = SegAgent(policy, Discs())
    image, mask = IMAGE.copy(), np.zeros((40, 90), bool)
    agent.refine(image, "x", mask)
    image[:] = 0
    agent.refine(IMAGE.copy(), "x", mask)  # answered from the cache
    assert np.array_equal(policy.seen[1].image, IMAGE)


def test_inputs_are_not_changed(scene: Sample) -> None:
    agent = SegAgent(OraclePolicy([scene]), load_segmenter("grabcut"))
    image, mask = scene.image.copy(), scene.mask & (np.arange(160) < 90)
    before = mask.copy()
    agent.segment(image, "ellipse")
    refined = agent.refine(image, "ellipse", mask)
    assert np.array_equal(image, scene.image) and np.array_equal(mask, before)
    assert refined.predicted_iou > iou(mask, scene.mask)


def test_threads_share_an_agent() -> None:
    samples = [sample(1 + number % 3, number) for number in range(6)]
    agent = SegAgent(OraclePolicy(samples), Discs(), max_clicks=9)
    alone = [agent.segment(s.image, s.prompt).trajectory.to_json() for s in samples]
    shared = SegAgent(OraclePolicy(samples), Discs(), max_clicks=9)
    barrier = threading.Barrier(8)

    def work(number: int) -> list[str]:
        barrier.wait()
        order = samples[number % 6 :] + samples[: number % 6]
        found = {s.id: shared.segment(s.image, s.prompt).trajectory.to_json() for s in order}
        return [found[s.id] for s in samples]

    with ThreadPoolExecutor(8) as pool:
        assert all(result == alone for result in pool.map(work, range(8)))


@pytest.mark.parametrize("number", [0, 4, 9])
def test_the_real_untrained_agent_on_photographs(photos: list[Sample], number: int) -> None:
    s = photos[number]
    image = np.ascontiguousarray(s.image[::3, ::3])
    agent = SegAgent(load_policy("saliency"), load_segmenter("grabcut"))
    rollout = agent.segment(image, s.prompt)
    assert rollout.mask.shape == image.shape[:2] and rollout.mask.dtype == bool and rollout.mask.any()
    assert 0 < rollout.predicted_iou <= 1
    assert rollout.stopped in ("finish", "good enough", "clicks", "repeated", "no gain")
    ratings = [step.predicted_iou for step in rollout.trajectory.steps if step.predicted_iou is not None]
    assert rollout.predicted_iou >= max(ratings)
    assert len(rollout.trajectory.clicks) <= 7
    again = SegAgent(load_policy("saliency"), load_segmenter("grabcut")).segment(image, s.prompt)
    assert again.trajectory.to_json() == rollout.trajectory.to_json()
    empty = np.zeros(image.shape[:2], bool)
    assert agent.score(image, s.prompt, rollout.mask) > agent.score(image, s.prompt, empty)
    assert agent.refine(image, s.prompt, rollout.mask).predicted_iou >= agent.score(image, s.prompt, rollout.mask)


def test_the_real_agent_finds_what_stands_out(scene: Sample) -> None:
    agent = SegAgent(load_policy("saliency"), load_segmenter("grabcut"))
    assert iou(agent.segment(scene.image, "ellipse").mask, scene.mask) > 0.95
    assert len(agent.segment_all(scene.image, "ellipse")) == 1
