"""Writes the table of situations and verbs, which tests/test_matrix.py checks, into docs/data.md.

python -m benchmarks.matrix
"""

from __future__ import annotations

from tests.test_matrix import PAGE, write_page

if __name__ == "__main__":
    write_page()
    print(f"written: {PAGE}")
