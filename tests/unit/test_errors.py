from __future__ import annotations

import subprocess
import sys

import pytest

import label_studio_segagent
from label_studio_segagent import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_one_base_for_all(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, errors.SegAgentError)
    assert str(error("what was wrong")) == "what was wrong"
    assert name in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("child", "parent"),
    [(errors.ImageError, errors.InputError), (errors.RegionError, errors.InputError)],
)
def test_lost_items_are_input_errors(child: type, parent: type) -> None:
    assert issubclass(child, parent)


def test_settings_and_answers_are_not_input() -> None:
    for error in (errors.ConfigError, errors.GrammarError, errors.ApiError):
        assert not issubclass(error, errors.InputError)


def test_api_errors_know_the_status() -> None:
    assert errors.ApiError("refused", 403).status == 403
    assert errors.ApiError("no answer").status is None


def test_the_public_surface() -> None:
    for name in label_studio_segagent.__all__:
        assert getattr(label_studio_segagent, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = label_studio_segagent.nothing  # type: ignore[attr-defined]


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, label_studio_segagent, label_studio_segagent.errors;"
        "print([m for m in ('torch', 'transformers', 'cv2', 'flask', 'gymnasium', 'pycocotools') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["hlmat.actions", "hlmat.env", "labelstudio.regions", "labelstudio.config", "agent.agent"]
)
def test_no_torch_behind_the_codecs(module: str) -> None:
    code = f"import sys, label_studio_segagent.{module}; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_hlmat_imports_nothing_of_ours() -> None:
    code = (
        "import sys, label_studio_segagent.hlmat.env, label_studio_segagent.hlmat.overlay;"
        "print(sorted({m.split('.')[1] for m in sys.modules if m.startswith('label_studio_segagent.')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['defaults', 'errors', 'hlmat']"
