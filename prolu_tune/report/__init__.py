"""One page that shows what a sweep found, self-contained and offline, and its plots as files."""

from prolu_tune.report.build import Report, build_report
from prolu_tune.report.collect import SweepData, collect

__all__ = ["Report", "SweepData", "build_report", "collect"]
