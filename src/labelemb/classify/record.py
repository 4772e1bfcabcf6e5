"""inputs.json of a run, checked: what makes inputs of other items as of those that it was trained on."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from labelemb.errors import InputError
from labelemb.run_folder import RunFolder
from labelemb.settings.config import LabelingSettings, SentenceSettings, TableSettings
from labelemb.settings.section import Count, first_mistake

_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    label_names: list[str] = Field(min_length=2)


class _Images(_Record):
    kind: Literal["images"]
    shape: tuple[Count, Count, Count]
    mean: list[_Number] = Field(min_length=1)
    std: list[_Number] = Field(min_length=1)


class _Rows(_Record):
    kind: Literal["rows"]
    columns: list[str] = Field(min_length=1)
    label_column: str
    shape: tuple[Count]
    mean: list[_Number]
    std: list[_Number]


class _Texts(_Record):
    kind: Literal["texts"]
    text_column: str
    label_column: str
    shape: tuple[Count]


def read_record(folder: RunFolder, settings: LabelingSettings) -> dict[str, Any]:
    """What inputs.json holds; empty for a run from before it was kept.

    Raises:
        InputError: it is damaged, or not that of a run of this task.
    """
    record = folder.inputs
    if not record:
        return {}
    kind = (
        _Rows if isinstance(settings, TableSettings) else _Texts if isinstance(settings, SentenceSettings) else _Images
    )
    try:
        checked = kind.model_validate(record)
        _check_moments(checked)
    except ValidationError as error:
        raise InputError(f"{folder.path / 'inputs.json'} is damaged: {first_mistake(error)}") from None
    except ValueError as error:
        raise InputError(f"{folder.path / 'inputs.json'} is damaged: {error}") from None
    return record


def _check_moments(record: _Record) -> None:
    """Raise ValueError where there is not one mean and deviation for each channel, or column."""
    if isinstance(record, _Rows) and len(record.columns) != record.shape[0]:
        raise ValueError(f"expected {record.shape[0]} columns, got {len(record.columns)}")
    if isinstance(record, _Rows | _Images) and not len(record.mean) == len(record.std) == record.shape[0]:
        raise ValueError(f"expected {record.shape[0]} means and deviations, got {len(record.mean)}, {len(record.std)}")
