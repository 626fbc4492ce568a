"""The base of every part of a suite file: unknown keys are refused, with the nearest valid name."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from basedbench.errors import nearest

MOST = 2**31 - 1


def _no_switch(value: object) -> object:
    """YAML reads yes and true as a number that Python counts as 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    return value


# Of things that a device has to hold or go through.
Count = Annotated[int, BeforeValidator(_no_switch), Field(gt=0, le=MOST)]
Real = Annotated[float, BeforeValidator(_no_switch)]
Seed = Annotated[int, BeforeValidator(_no_switch), Field(ge=-(2**63), lt=2**63)]  # what PyTorch's generators take


class UnknownKeyError(ValueError):
    """A key that its section does not have."""

    def __init__(self, key: str, section: "type[Section]") -> None:
        self.key, self.section = key, section
        advice = nearest(key, section.model_fields)
        if section.ELSE and advice.startswith("valid"):
            advice = f"{advice.removesuffix('.')}; {section.ELSE}"
        super().__init__(f"unknown key {key!r}; {advice}")


class Section(BaseModel):
    """A mapping in a suite file. Frozen once read; a key that it does not know is an error.

    `MAPPINGS` are keys that its free mappings, such as a grid, take; `ELSE` says where all other names belong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    MAPPINGS: ClassVar[Mapping[str, Collection[str]]] = {}
    ELSE: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = [str(key) for key in data if key not in cls.model_fields]
            if unknown:
                raise UnknownKeyError(unknown[0], cls)
        return data


class Suite(Section):
    """What every suite file has, whatever its kind. `name` is the file's stem."""

    kind: str
    name: Annotated[str, Field(min_length=1)]
    description: str = ""
