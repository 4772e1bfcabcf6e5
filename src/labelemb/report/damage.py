"""What the files of a run must hold for a report to be made of them; whatever else they hold is left alone."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from labelemb.errors import InputError
from labelemb.settings.config import ReportSettings
from labelemb.settings.section import first_mistake


class _Config(BaseModel):
    report: ReportSettings | None = None
    data: dict[str, Any] | None = None
    epochs: int | None = None


class _Bin(BaseModel):
    count: int
    confidence: float | None
    correct: int


class _Evaluation(BaseModel):
    test: dict[str, Any] | None = None
    calibration: list[_Bin | tuple[int, float | None, int]] | None = None
    label_names: list[str] | None = None
    signature: str | None = None


def check_config(path: Path, config: dict[str, Any]) -> None:
    """Raise InputError where config.yaml has other kinds of values than a report reads."""
    _check(_Config, path, config)


def check_evaluation(path: Path, evaluation: dict[str, Any]) -> None:
    """Raise InputError where evaluation.json has other kinds of values than a report reads."""
    _check(_Evaluation, path, evaluation)


def _check(kind: type[BaseModel], path: Path, values: dict[str, Any]) -> None:
    try:
        kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {first_mistake(error)}") from None
