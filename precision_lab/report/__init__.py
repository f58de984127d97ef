"""Figures and a page from the files a run left; the only importer of matplotlib and of templates."""

from precision_lab.report.page import write

__all__ = ["write"]
