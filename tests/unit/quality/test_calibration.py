from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label_studio_segagent.errors import ConfigError
from label_studio_segagent.quality.calibration import Calibration, fit_calibration, fit_combination, shipped
from label_studio_segagent.quality.evidence import Evidence
from label_studio_segagent.quality.report import calibration_curve


def test_what_ships_prefers_good_evidence() -> None:
    good = Evidence(0.95, 0.97, 0.9, 0.95, 0.9, 0.9, 0.9, 0.6, 0.8)
    bad = Evidence(0.1, 0.2, 0.1, 0.2, 0.1, 0.6, 0.1, 0.1, 0.8)
    high, low = shipped()([good, bad])
    assert high > 0.85 and low < 0.4 and shipped()([]).shape == (0,)


def test_a_regression_finds_what_the_numbers_say() -> None:
    rng = np.random.default_rng(0)
    rows = [Evidence(*rng.random(9)) for _ in range(400)]
    true = np.array([0.2 + 0.7 * e.rating * e.boxed for e in rows])
    found = fit_combination(rows[:300], true[:300], 0.1)(rows[300:])
    assert np.abs(found - true[300:]).mean() < 0.03


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=120))
def test_a_calibration_rises_and_stays_in_range(cloud: list[tuple[float, float]]) -> None:
    fitted = fit_calibration(*zip(*cloud, strict=True))
    values = fitted(np.linspace(-0.5, 1.5, 50))
    assert (np.diff(values) >= -1e-9).all() and values.min() >= 0 and values.max() <= 1


def test_a_calibration_corrects_what_is_off(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true = rng.random(300)
    scores = np.clip(true**2 + rng.normal(0, 0.02, 300), 0, 1)  # too pessimistic here
    fitted = fit_calibration(scores, true)
    assert np.abs(fitted(scores) - true).mean() < 0.04 < np.abs(scores - true).mean()
    fitted.save(tmp_path / "sub" / "calibration.json")
    again = Calibration.load(tmp_path / "sub" / "calibration.json")
    assert again == fitted and again.count == 300
    picture = calibration_curve(np.stack([scores, true], 1), fitted)
    assert picture.dtype == np.uint8 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_no_file_means_no_change_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    nothing = Calibration.load(tmp_path / "none.json")
    assert list(nothing([0.2, 1.4])) == [0.2, 1.0]
    (tmp_path / "x.json").write_text('{"knots": [[0')
    with pytest.raises(ConfigError, match="delete it"):
        Calibration.load(tmp_path / "x.json")
