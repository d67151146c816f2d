"""Rows to tensors. `batch` needs torch; readers and mixtures do not."""

from postgrad.data.mixture import Mixture, split_of
from postgrad.data.readers import read_examples, read_rows

__all__ = ["Mixture", "read_examples", "read_rows", "split_of"]
