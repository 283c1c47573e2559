import json
import re

import altair as alt
import pytest
from report_samples import ALL, curves, run, sweep

from prolu_tune.config.names import place
from prolu_tune.report import build_report
from prolu_tune.report.axes import SHAPES, color, shape
from prolu_tune.report.figures import write_figures
from prolu_tune.report.theme import Look

NASTY = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def report():
    rows = curves(seeds=2)
    rows[3] |= {"label": f"relu {NASTY}"}
    rows[5] |= {"state": "failed", "message": f"RuntimeError: {NASTY}", "log": "/far/away/error.txt", "l0": None}
    return build_report(sweep(rows, name="sweep-1"))


def payload(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_is_about_a_megabyte_and_asks_for_nothing(report):
    assert len(report.html.encode()) < 1_200_000
    without_library = re.sub(r"<script>const n=.*?</script>", "", report.html, flags=re.DOTALL)
    markup = without_library.split('<script type="application/json"')[0]
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", markup) and "href=" in markup
    assert "url(" not in without_library and "@import" not in without_library
    assert "default-src 'none'" in report.html and "unsafe-eval" not in report.html


def test_every_run_stands_in_the_table_with_its_id_and_checkpoint(report):
    for row in report.data.rows:
        assert report.html.count(f'<tr data-run="{row["run_id"]}">') == 1
        assert row["run_id"] in report.html and row["checkpoint"] in report.html


def test_names_and_messages_of_users_are_text_not_markup(report):
    assert "alert(1)" in report.html and NASTY not in report.html
    assert any(row["label"] == f"relu {NASTY}" for row in report.datasets["runs"])
    assert payload(report.html)["datasets"]["runs"]["length"] == 59, "the payload must still be JSON"


def test_trials_that_did_not_finish_are_listed_with_message_and_log_and_are_on_no_plot(report):
    assert "Not finished: 1 failed" in report.html and "/far/away/error.txt" in report.html
    assert report.data.rows[5]["run_id"] not in {row["run_id"] for row in report.datasets["runs"]}


def test_all_that_was_promised_has_a_plot(report):
    names = {plot.name for plot in report.plots}
    assert names >= {
        "ce_degradation-l0", "best-by-l0", "mse-l1", "mse-sqrt_l1", "l1-l0", "relative_norm-l0", "l0-l1_coefficient",
        "coverage",
        "frac_dead-l0",
    }  # fmt: skip
    assert {f"course-{name.replace('+', '-')}" for name in ALL} <= names
    assert names == set(payload(report.html)["specs"])
    assert all(f'<figure id="{name}"' in report.html for name in names)


def test_seeds_bring_bands_and_words_and_one_seed_says_so(report):
    assert report.datasets["bands"] and "chance of being best" in report.html
    single = build_report(sweep(curves()))
    assert single.datasets["bands"] == [] and "best-by-l0" not in {plot.name for plot in single.plots}
    assert "With one seed nothing is known about noise" in single.html


def test_an_architecture_looks_the_same_whatever_else_is_there(report):
    alone = build_report(sweep(curves(["prolu_ste+l1"])))
    for made, architectures in ((report, ALL), (alone, ["prolu_ste+l1"])):
        spec = made.plots[0].make(Look(architectures)).to_dict()
        scales = [layer["encoding"]["color"]["scale"] for layer in spec["layer"] if "color" in layer.get("encoding", {})]
        index = list(architectures).index("prolu_ste+l1")
        assert scales and {scale["range"][index] for scale in scales} == {color("prolu_ste+l1")}
    assert len({color(name) for name in ALL}) == len({shape(name) for name in ALL}) == len(SHAPES) == 6
    assert [place(name) for name in ALL] == [0, 1, 2, 3, 4, 5]


def test_every_specification_is_valid_vega_lite_on_the_page_and_on_paper(report):
    for plot in report.plots:
        for paper in (False, True):
            look = Look(report.data.architectures, paper=paper, seeds=True)
            spec = ((plot.paper or plot.make) if paper else plot.make)(look).to_dict()
            alt.Chart.from_dict(spec, validate=True)
            assert ("hidden" in json.dumps(spec)) is not paper


def test_figures_are_svg_and_pdf_of_every_plot_with_a_legend_and_no_placeholder(report, tmp_path):
    few = [plot for plot in report.plots if plot.name in ("ce_degradation-l0", "coverage", "course-relu-l1")]
    made = type(report)(report.html, report.data, report.findings, few, report.datasets)
    written = write_figures(made, tmp_path / "figures")
    assert len(written) == 6 and {path.suffix for path in written} == {".svg", ".pdf"}
    main = (tmp_path / "figures" / "ce_degradation-l0.svg").read_text()
    assert "prolu_relu+sqrt_l1" in main and "CE degradation (nats per token)" in main
    assert "__" not in main and "currentColor" not in main
    assert all(path.read_bytes().startswith(b"%PDF") for path in written if path.suffix == ".pdf")


def test_a_sweep_without_finished_trials_still_gives_a_page():
    rows = [run(0, "relu+l1", 10, 0.1) | {"state": "running", "l0": None, "ce_degradation": None}]
    made = build_report(sweep(rows, target=None))
    assert "No trial has finished yet" in made.html and "0 of 1" in made.html
    assert made.plots == [] or all(plot.section == "courses" for plot in made.plots)
    empty = build_report(sweep([], target=None))
    assert "0 of 0" in empty.html


def test_an_optional_metric_gets_a_column_and_a_plot_once_it_is_measured():
    rows = curves(["relu+l1", "prolu_ste+l1"])
    assert "magnitude_slope-l0" not in {plot.name for plot in build_report(sweep(rows)).plots}
    for row in rows:
        row["magnitude_slope"] = 0.9 + row["l0"] / 1000
    made = build_report(sweep(rows))
    assert "magnitude_slope-l0" in {plot.name for plot in made.plots} and ">slope<" in made.html
