"""The pictures and the page of a finished run, as `run_method` takes them, and the word on what is to be done next."""

from __future__ import annotations

from pathlib import Path

from maskwright.app.montage import MONTAGE, naming_command, write_clusters
from maskwright.app.pictures import write_previews
from maskwright.app.report import write_report
from maskwright.data.masking.cluster_map import MAP
from maskwright.engine.result import Pages


def what_clusters_want(run: Path) -> str:
    """The one line on how clusters become classes."""
    return f"clusters: see {run / MONTAGE}, fill in the column name of {run / MAP}, then {naming_command(run)}"


PAGES = Pages(write_previews, write_report, write_clusters, what_clusters_want)
