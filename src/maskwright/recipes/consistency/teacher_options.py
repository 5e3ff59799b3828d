"""Options of an EMA teacher, of methods that hold one."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.engine.config import option
from maskwright.errors import MaskwrightError


@dataclass(kw_only=True)
class TeacherOptions:
    """The EMA teacher."""

    ema: float = option(
        0.99, "greatest momentum of the EMA teacher; min(1 - 1/(n + 1), ema) at update n", low=0, high=1
    )
    buffers: str = option(
        "ema", "the teacher's batch-norm statistics: averaged, copied or its own", choices=("ema", "copy", "own"),
        old="ema_buffers",
    )  # fmt: skip
    mode: str = option("eval", "batch norm of the network that labels", choices=("eval", "train"), old="teacher_mode")
    final: str = option("student", "the network that is kept: student or teacher", choices=("student", "teacher"))

    @property
    def kept(self) -> str:
        """Name in a training's `modules` of the network that is kept."""
        return "teacher" if self.final == "teacher" else "network"

    @property
    def unasked(self) -> tuple[str, ...]:
        """Names of options, in a part called `teacher`, that have no use where nothing is learned from its labels."""
        return ("teacher.mode",) if self.final == "teacher" else ("teacher.mode", "teacher.ema", "teacher.buffers")

    def check(self) -> None:
        """Raises `MaskwrightError` on a teacher that would label with the statistics it began with."""
        if self.buffers == "own" and self.mode == "eval":
            raise MaskwrightError(
                "ema_buffers=own with teacher_mode=eval: statistics that nothing ever moves", "teacher_mode=train",
                "or take ema_buffers=ema",
            )  # fmt: skip


NO_TEACHER = ("ema", "buffers", "final")
"""Options of a teacher that methods whose student labels have no use for: what is left is the mode in which it does."""
