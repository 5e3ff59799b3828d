"""Memory banks: fixed-size first-in first-out stores of features, with labels where a method has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureBank(nn.Module):
    """A FIFO store of the newest `size` rows, saved and restored with the run.

    Args:
        size: number of rows.
        width: width of a row.
        labels: whether each row carries an integer label.
    """

    rows: Tensor
    ids: Tensor
    head: Tensor
    count: Tensor

    def __init__(self, size: int, width: int, labels: bool = False) -> None:
        super().__init__()
        if size < 1 or width < 1:
            raise ValueError(f"a bank needs at least one row and one column, not {size} x {width}")
        self.size, self.labels = size, labels
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("ids", torch.full((size if labels else 0,), -1, dtype=torch.long))
        self.register_buffer("head", torch.zeros((), dtype=torch.long))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return int(self.count)

    @torch.no_grad()
    def add(self, rows: Tensor, ids: Tensor | None = None) -> None:
        """Stores rows (n, width), the oldest making room; of more than `size` rows the last stay.

        Raises:
            ValueError: when labels are missing or not expected, or shapes do not fit the bank.
        """
        if rows.ndim != 2 or rows.shape[1] != self.rows.shape[1]:
            raise ValueError(f"rows are {tuple(rows.shape)}, expected (n, {self.rows.shape[1]})")
        if (ids is not None) != self.labels:
            raise ValueError("this bank stores labels" if self.labels else "this bank stores no labels")
        if ids is not None and ids.shape != rows.shape[:1]:
            raise ValueError(f"labels are {tuple(ids.shape)}, expected ({len(rows)},)")
        rows = rows.detach()[-self.size :]
        where = (int(self.head) + torch.arange(len(rows), device=self.rows.device)) % self.size
        self.rows[where] = rows.to(self.rows)
        if ids is not None:
            self.ids[where] = ids.detach()[-self.size :].to(self.ids)
        self.head.fill_((int(self.head) + len(rows)) % self.size)
        self.count.fill_(min(self.size, int(self.count) + len(rows)))

    def get(self) -> Tensor:
        """The stored rows (count, width), oldest first; no gradient."""
        return self.rows[self._order()]

    def get_ids(self) -> Tensor:
        """The labels of `get`'s rows (count,)."""
        return self.ids[self._order()]

    def _order(self) -> Tensor:
        n, head = int(self.count), int(self.head)
        return (torch.arange(n, device=self.rows.device) + (head - n)) % self.size
