"""The kinds of numbers of a protocol, and what its sections have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Limits say what cannot be meant. They lie far above every use, and are refused before anything is allocated.
Positive = Annotated[float, Field(gt=0, le=1e30)]  # float32, in which all is computed, ends at 3e38
Factor = Annotated[float, Field(ge=0, le=1e30)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=10**7)]  # of examples: 500 times the longest task of the paper, and in memory
Rows = Annotated[int, Field(ge=1, le=2**16)]  # of a batch


class Section(BaseModel):
    """A part of a protocol: unknown fields, infinities and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MemorySection(Section):
    """A memory of finished tasks: examples of each that are kept, and how many of all are drawn for a step."""

    memory_per_task: Count = 32
    batch_size: Rows = 4
