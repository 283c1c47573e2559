"""One page that shows what a sweep found, self-contained and offline, and its plots as files."""

from prolu_tune.report.build import Report, build_report

__all__ = ["Report", "build_report"]
