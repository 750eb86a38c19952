"""What ``crma evaluate`` stores: the scores of one task of a folder, of the bare model, and with its adapters."""

from typing import Literal

from pydantic import BaseModel, FiniteFloat, NonNegativeInt

#: what answered, in the order of tables and pictures: CRMA is bypassed in the second, and where a condition has none
BARE, LORA, BOTH = "bare model", "LoRA alone", "LoRA and CRMA"


class Score(BaseModel):
    """A metric and its standard error; None for what the benchmark gives none of, or no finite one."""

    value: FiniteFloat | None
    stderr: FiniteFloat | None = None


class Row(BaseModel):
    """One metric of one benchmark. ``filter``: how the answer was read out of the text, "none" where it was not.
    ``part_of``: the group whose own figures hold it already, if any. ``scores``: by what answered."""

    benchmark: str
    metric: str
    filter: str
    samples: NonNegativeInt | None
    higher_is_better: bool | None
    part_of: str | None
    scores: dict[str, Score]


class Evaluation(BaseModel):
    """One call of ``crma evaluate``. ``task``: of the folder, whose adapters answered. ``limit``: texts of each
    benchmark at most, None for all."""

    format: Literal["crma-evaluation"] = "crma-evaluation"
    task: str
    model: str
    random_weights: bool
    precision: str
    quantization: str
    condition: str
    seed: int
    chat_template: bool
    benchmarks: list[str]
    limit: int | None
    batch_size: int
    backend: str
    machine: str
    versions: dict[str, str]
    time: str
    rows: list[Row]

    @property
    def shown(self) -> list[Row]:
        """The rows without those that a group's own figures hold already."""
        return [row for row in self.rows if row.part_of is None]
