"""What all methods of `prune` share: how much they keep."""

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.run import Run
from pipeline.selection import rows_to_keep
from pipeline.steps.base import Stands, Step


class Prune(Step):
    """Settings of every method. Each adds a field `method`, which names it.

    Attributes:
        keep_fraction: share of the entering rows to keep.
        keep: number of rows to keep, instead of a share.
    """

    version: ClassVar[int] = 2
    random: ClassVar[bool] = True
    stands: ClassVar[Stands] = "append"

    step: Literal["prune"]
    keep_fraction: float | None = Field(default=None, gt=0, le=1)
    keep: int | None = Field(default=None, ge=1)

    def rows_to_keep(self, run: Run) -> int:
        """How many of the entering rows stay. Raises InputError where fewer enter."""
        return rows_to_keep(self.title, run.num_entering, self.keep_fraction, self.keep)

    def check_one_target(self) -> None:
        """Raises ValueError unless exactly one of `keep_fraction` and `keep` is given; for validators."""
        if (self.keep_fraction is None) == (self.keep is None):
            raise ValueError("needs exactly one of keep_fraction and keep")
