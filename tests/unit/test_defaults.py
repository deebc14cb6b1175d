"""A default that an option, a setting and a library call share is one constant."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import label_studio_segagent
from label_studio_segagent import defaults
from label_studio_segagent.cli import app

PACKAGE = Path(label_studio_segagent.__file__).parent
CONSTANTS = {name: getattr(defaults, name) for name in defaults.__all__}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_shared_default_is_used_in_several_places(name: str) -> None:
    users = [p for p in PACKAGE.rglob("*.py") if name in p.read_text("utf-8") and p.name != "defaults.py"]
    assert len(users) > 1, users


def shared() -> list[tuple[str, str, object]]:
    """(file, parameter or field, literal) of whatever is called as something that a constant is the default of."""
    constants: dict[str, set[str]] = {}
    literals: dict[str, list[tuple[str, object]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            pairs: list[tuple[str, ast.expr]] = []
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args]
                pairs += [(a.arg, d) for a, d in zip(given[::-1], node.args.defaults[::-1], strict=False)]
                pairs += [(a.arg, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d]
            elif isinstance(node, ast.ClassDef):
                fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
                pairs += [(f.target.id, f.value) for f in fields if f.value and isinstance(f.target, ast.Name)]
            for name, value in pairs:
                if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Field":
                    value = value.args[0] if value.args else value
                if isinstance(value, ast.Name) and value.id in CONSTANTS:
                    constants.setdefault(name, set()).add(value.id)
                elif isinstance(value, ast.Constant) and isinstance(value.value, (int, float)):
                    literals.setdefault(name, []).append((path.name, value.value))
    return [
        (file, name, value)
        for name in constants
        for file, value in literals.get(name, [])
        if value in {CONSTANTS[c] for c in constants[name]}
    ]


def test_no_parameter_of_the_same_name_writes_the_number_down_once_more() -> None:
    assert shared() == []


@pytest.mark.parametrize(
    ("command", "option", "constant"),
    [
        ("refine", "gain", "LEAST_GAIN"),
        ("star", "clicks", "MAX_CLICKS"),
        ("star", "rounds", "STAR_ROUNDS"),
        ("star", "minutes", "FIT_MINUTES"),
        ("train", "minutes", "FIT_MINUTES"),
        ("train", "batch", "ANSWERS_IN_A_STEP"),
        ("trajectories", "max_clicks", "MAX_CLICKS"),
        ("trajectories", "tau_stop", "ANNOTATOR_STOP_IOU"),
        ("train-embedded segmenter", "minutes", "SEGMENTER_MINUTES"),
        ("train-embedded policy", "minutes", "POLICY_MINUTES"),
        ("qc export", "min_score", "SCORE_KEPT"),
    ],
)
def test_the_command_line_says_the_same_as_the_library(command: str, option: str, constant: str) -> None:
    found = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]  # type: ignore[attr-defined]
    [parameter] = [p for p in found.params if p.name == option]
    assert parameter.default == CONSTANTS[constant]


def test_star_clicks_on_the_tool_of_the_settings_like_every_other_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGAGENT_SEGMENTER", "nothing-like-that")
    done = CliRunner().invoke(app, ["star", "embedded", "--data", "x", "--out", "y"])
    assert done.exit_code == 1 and "nothing-like-that" in done.output


def test_the_library_has_them_too() -> None:
    from label_studio_segagent import SegAgent
    from label_studio_segagent.server.predictor import Predictor
    from label_studio_segagent.server.refining import refine_project
    from label_studio_segagent.server.settings import Settings

    def default(function: object, name: str) -> object:
        return inspect.signature(function).parameters[name].default  # type: ignore[arg-type]

    assert default(refine_project, "least_gain") == defaults.LEAST_GAIN
    for name in ("max_clicks", "candidates", "beam", "stop_iou"):
        assert default(SegAgent, name) == Settings.model_fields[name].default == CONSTANTS[name.upper()]
    for name, field in (
        ("batch_size", "batch_size"),
        ("seconds", "predict_seconds"),
        ("max_instances", "max_instances"),
    ):
        assert default(Predictor, name) == Settings.model_fields[field].default
