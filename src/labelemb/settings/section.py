"""What sections of settings are made of: their base, and the kinds of values that several have."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(coerce_numbers_to_str=True)]  # of a label: YAML reads 7 as a number
FolderName = Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$")]  # one level below --output, never beside it
DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]


class Section(BaseModel):
    """Settings under one name: none that is unknown, and none that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _number_or_share(value: float) -> int | float:
    if value >= 1 and not float(value).is_integer():
        raise ValueError("a number of images or a share below 1")
    return int(value) if value >= 1 else value


HeldOut = Annotated[int | float, Field(ge=0, allow_inf_nan=False), AfterValidator(_number_or_share)]
