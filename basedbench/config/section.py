"""The base of every part of a suite file: unknown keys are refused, with the nearest valid name."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from basedbench.errors import nearest

MOST = 2**31 - 1
Count = Annotated[int, Field(gt=0, le=MOST)]  # of things that a device has to hold or go through
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what PyTorch's generators take


class Section(BaseModel):
    """A mapping in a suite file. Frozen once read; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = [str(key) for key in data if key not in cls.model_fields]
            if unknown:
                raise ValueError(f"unknown key {unknown[0]!r}; {nearest(unknown[0], cls.model_fields)}")
        return data


class Suite(Section):
    """What every suite file has, whatever its kind. `name` is the file's stem."""

    kind: str
    name: Annotated[str, Field(min_length=1)]
    description: str = ""
