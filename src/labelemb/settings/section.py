"""What sections of settings are made of: their base, and the kinds of values that several have."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


def _without_control(name: str) -> str:
    if not name.isprintable():
        raise ValueError("a name without control characters")
    return name


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(coerce_numbers_to_str=True)]  # of a label: YAML reads 7 as a number
FolderName = Annotated[
    str, Field(pattern=r"^[^/\\.][^/\\]*$", max_length=200), AfterValidator(_without_control)
]  # one level below --output, never beside it
DeviceName = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]


class Section(BaseModel):
    """Settings under one name: none that is unknown, and none that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _number_or_share(value: float) -> int | float:
    if value >= 1 and not float(value).is_integer():
        raise ValueError("a number of images or a share below 1")
    return int(value) if value >= 1 else value


HeldOut = Annotated[int | float, Field(ge=0, allow_inf_nan=False), AfterValidator(_number_or_share)]


def first_mistake(error: ValidationError) -> str:
    """Where it is and what is wrong, in one line; what came is left out, as it may be of any length."""
    details = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in details["loc"])
    return f"{place}: {details['msg']}"
