from __future__ import annotations

import math

import pytest
import torch

from label_studio_segagent.embedded.evidence import Evidence, Query, Sensed, mean_feature, weighted_mean

FEATURES = 16


@pytest.fixture
def evidence() -> Evidence:
    torch.manual_seed(0)
    made = Evidence(4, taught=3, features=FEATURES, classes=5)
    made.prototypes.copy_(torch.eye(FEATURES)[:3] * 4)
    return made


def sensed(evidence: Evidence, places: torch.Tensor) -> Sensed:
    """An image of one row whose places have these features (n, FEATURES)."""
    features = places.T[:, None]
    classes = torch.log_softmax(torch.arange(5.0)[:, None, None].expand(5, 1, len(places)), 0)
    return Sensed(features, classes, evidence._ratios(features, evidence.prototypes))


def test_a_place_like_the_mean_is_likelier_than_one_like_everything_else(evidence: Evidence) -> None:
    seen = sensed(evidence, torch.stack([evidence.prototypes[0], evidence.centre, evidence.prototypes[1]]))
    assert seen.taught[0, 0].tolist() == pytest.approx([2.0, -2.0, -2.0])
    assert seen.taught[:, 0, 0].argmax() == 0 and seen.taught[:, 0, 2].argmax() == 1


def test_the_metric_is_that_of_all_places(evidence: Evidence) -> None:
    """A direction in which everything varies says less."""
    evidence.metric.copy_(torch.diag(torch.tensor([0.25] + [1.0] * (FEATURES - 1))))
    first, _ = evidence.directions(evidence.prototypes[:1])
    second, _ = evidence.directions(evidence.prototypes[1:2])
    assert first.norm() == pytest.approx(0.25 * second.norm())


def test_blank_queries_have_no_evidence_but_other_names(evidence: Evidence) -> None:
    seen = sensed(evidence, torch.randn(6, FEATURES))
    maps, facts = evidence.maps(seen, Query())
    assert Query().blank and maps.shape == (Evidence.CHANNELS, 1, 6) and facts.shape == (Evidence.FACTS,)
    assert not maps[[0, 1, 2, 4, 5, 6]].any() and torch.equal(maps[3], seen.taught.amax(0))
    assert facts[:4].tolist() == [0, 0, 0, 0] and facts[7] == maps[3].amax()


def test_classes_are_meant_together(evidence: Evidence) -> None:
    seen = sensed(evidence, torch.randn(2, FEATURES))
    maps, facts = evidence.maps(seen, Query(classes=((1, 1.0), (3, 0.5))))
    together = seen.classes[1].exp() + 0.5 * seen.classes[3].exp()
    torch.testing.assert_close(maps[0], together.log() / 5 + 1)
    assert facts[0] == 1 and facts[1:4].tolist() == [0, 0, 0]


def test_a_name_is_no_rival_of_itself(evidence: Evidence) -> None:
    seen = sensed(evidence, evidence.prototypes.clone())
    maps, _ = evidence.maps(seen, Query(taught=((1, 1.0),)))
    assert torch.equal(maps[1], seen.taught[1]) and torch.equal(maps[3], seen.taught[[0, 2]].amax(0))
    everything, _ = evidence.maps(seen, Query(taught=tuple((i, 1.0) for i in range(3))))
    assert not everything[3].any()
    kind, _ = evidence.maps(seen, Query(taught=((1, 0.5),)))
    torch.testing.assert_close(kind[1], maps[1] + math.log(0.5))


def test_few_examples_are_trusted_less(evidence: Evidence) -> None:
    example = torch.eye(FEATURES)[5] * 4
    seen = sensed(evidence, torch.stack([example, evidence.prototypes[0]]))
    peaks = [evidence.maps(seen, Query(examples=example, count=count))[0][2, 0] for count in (1, 5, 1000)]
    assert peaks[0][0] < peaks[1][0] < peaks[2][0] <= 2 and all(peak[0] > peak[1] for peak in peaks)
    assert evidence.maps(seen, Query(examples=example, count=1))[1][2:4].tolist() == pytest.approx(
        [1, 0.2 * math.log(2)]
    )


def test_maps_relative_to_the_image_reach_one(evidence: Evidence) -> None:
    seen = sensed(evidence, torch.stack([evidence.prototypes[0], *[evidence.centre] * 4]))
    maps, _ = evidence.maps(seen, Query(taught=((0, 1.0),)))
    assert maps[5, 0].tolist() == pytest.approx([1, 0, 0, 0, 0], abs=0.02)


def test_features_have_the_same_length_everywhere(evidence: Evidence) -> None:
    features = evidence.features(torch.randn(1, 4, 3, 5) * 10)
    assert features.shape == (FEATURES, 3, 5)
    torch.testing.assert_close(features.square().mean(0), torch.ones(3, 5))
    seen = evidence.see(torch.randn(1, 4, 3, 5))
    torch.testing.assert_close(seen.classes.exp().sum(0), torch.ones(3, 5))
    assert seen.taught.shape == (3, 3, 5)


def test_small_objects_are_read_where_they_cover_most() -> None:
    features = torch.arange(4.0).reshape(1, 2, 2)
    mean, weight = mean_feature(features, torch.tensor([[0.1, 0.0], [0.0, 0.02]]))
    assert mean.tolist() == [0] and weight == pytest.approx(0.1**0.5)
    mean, weight = mean_feature(features, torch.tensor([[0.0, 1.0], [0.2, 1.0]]))
    assert mean.tolist() == [2] and weight == pytest.approx(2**0.5)
    assert mean_feature(torch.ones(1, 9, 9), torch.ones(9, 9))[1] == 3


def test_means_are_weighed() -> None:
    shown = [(torch.tensor([0.0]), 1.0), (torch.tensor([3.0]), 2.0)]
    assert weighted_mean(shown).tolist() == [2]
