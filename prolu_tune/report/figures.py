"""The plots as files for a paper: SVG, and PDF with its text as text. Needs no browser."""

import json
from pathlib import Path

import vl_convert

from prolu_tune.durable import replace_file
from prolu_tune.report.build import VEGA_LITE, Report
from prolu_tune.report.theme import Look


def write_figures(report: Report, folder: Path) -> list[Path]:
    """Writes NAME.svg and NAME.pdf of every plot and returns the files.

    Raises:
        OSError: if they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    look = Look(report.data.architectures, paper=True, seeds=report.data.seeds > 1)
    written = []
    for plot in report.plots:
        spec = (plot.paper or plot.make)(look).to_dict()
        used = json.dumps(spec)
        spec["datasets"] = {name: rows for name, rows in report.datasets.items() if f'"name": "{name}"' in used}
        spec["background"] = "white"
        # Paper is white: what takes the page's colour there is black here.
        text = json.dumps(spec).replace('"currentColor"', '"#111111"')
        for suffix, content in (
            ("svg", vl_convert.vegalite_to_svg(text, vl_version=VEGA_LITE).encode()),
            ("pdf", vl_convert.vegalite_to_pdf(text, vl_version=VEGA_LITE)),
        ):
            path = folder / f"{plot.name}.{suffix}"
            replace_file(path, [content])
            written.append(path)
    return written
