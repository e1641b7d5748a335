"""The whole report: reproducible, self-contained, safe, and complete."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.reporting.synthetic import HOSTILE_TEXT, MODELS, evaluation, write, write_rows

from trilith.reporting import ReportFiles, write_report

SVG = "{http://www.w3.org/2000/svg}"
BUILD = (
    "import sys; from pathlib import Path; from trilith.reporting import write_report; "
    "write_report(Path(sys.argv[1]), out_dir=Path(sys.argv[2])); "
    "assert not {'torch', 'lightning', 'hydra'} & set(sys.modules)"
)


class _Page(HTMLParser):
    """What a browser would make of the page: tags, ids, links and the text of <pre>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.completions: list[str] = []
        self._in_pre = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")
        if tag == "pre":
            self._in_pre = True
            self.completions.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_pre = self._in_pre and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._in_pre:
            self.completions[-1] += data


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_inputs_give_same_bytes_whatever_the_hash_seed(
    finished_metrics: Path, report: ReportFiles, tmp_path: Path
) -> None:
    builds = []
    for seed in ("0", "4711"):
        # A matplotlibrc of the reader's own must not show either.
        (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nsvg.fonttype: path\n")
        builds.append(
            subprocess.Popen(
                [sys.executable, "-c", BUILD, str(finished_metrics), str(tmp_path / seed)],
                env=os.environ
                | {
                    "PYTHONHASHSEED": seed,
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
                },
            )
        )
    assert [build.wait(timeout=120) for build in builds] == [0, 0]
    expected = _contents(report.page.parent)
    del expected["config.yaml"]
    assert _contents(tmp_path / "0") == expected
    assert _contents(tmp_path / "4711") == expected


def test_the_page_needs_nothing_from_outside(report: ReportFiles) -> None:
    page = _Page(report.page.read_text(encoding="utf-8"))
    assert page.links
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    text = report.page.read_text(encoding="utf-8")
    assert "@import" not in text
    assert set(re.findall(r"url\((.*?)\)", text)) <= {f"#{name}" for name in page.ids}


def test_ids_are_unique_over_the_whole_page(report: ReportFiles) -> None:
    ids = _Page(report.page.read_text(encoding="utf-8")).ids
    assert len(ids) == len(set(ids))


def test_model_text_is_shown_and_cannot_act_on_the_page(report: ReportFiles) -> None:
    page = _Page(report.page.read_text(encoding="utf-8"))
    shown = HOSTILE_TEXT
    for unseen in "\x07\u202e\u2066\ud800":
        shown = shown.replace(unseen, f"\\u{ord(unseen):04x}")
    assert page.completions.count(shown) == len(MODELS)
    assert "b" in page.tags
    assert "<b>upon" not in report.page.read_text(encoding="utf-8")


def test_model_text_cannot_leave_its_markdown_block(report: ReportFiles) -> None:
    fence, inside, outside = "", 0, []
    for line in report.markdown.read_text(encoding="utf-8").splitlines():
        run = re.match(r" {0,3}(`{3,})", line)
        if fence:
            inside += 1
            closes = run and len(run[1]) >= len(fence) and not line.strip().strip("`")
            fence = "" if closes else fence
        elif run:
            fence = run[1]
        else:
            outside.append(line)
    assert not fence
    assert inside
    assert not any("alert(" in line or line == "# escaped" for line in outside)


def test_figures_are_linked_titled_and_described(report: ReportFiles) -> None:
    markdown = report.markdown.read_text(encoding="utf-8")
    linked = re.findall(r"!\[([^]]+)\]\((figures/[^)]+)\)", markdown)
    assert {report.markdown.parent / link for _, link in linked} == set(report.figures)
    for figure in report.figures:
        root = ElementTree.parse(figure).getroot()
        assert root.get("role") == "img"
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert title is not None and title.text
        assert description is not None and description.text
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


def test_no_formula_source_is_left_in_a_figure(report: ReportFiles) -> None:
    for figure in report.figures:
        assert "mathdefault" not in figure.read_text(encoding="utf-8")


def test_the_summary_holds_the_figures_of_the_evaluation(report: ReportFiles) -> None:
    content = evaluation()
    del content["samples"]
    assert json.loads(report.summary.read_text()) == json.loads(json.dumps(content))


def test_the_page_opens_with_what_was_found(report: ReportFiles) -> None:
    text = report.page.read_text(encoding="utf-8")
    opening = re.search(r"<h1>(.*?)</h1>", text)
    assert opening is not None
    # exp(3.483 - 3.412) and 9.1 MB of 41.2 MB.
    assert opening[1] == (
        "The packed ternary model reaches 1.07x the dense twin&#39;s perplexity in 0.22x its bytes."
    )
    assert "Targets: 5 of 5 met." in text


def test_the_cost_of_a_step_is_shown_by_part_with_the_peak_named(report: ReportFiles) -> None:
    lines = report.markdown.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if "Optimizer (ms)" in line)
    header, _, dense, ternary = (
        [c.strip() for c in line.split("|")] for line in lines[at : at + 4]
    )
    shown = dict(zip(header, dense, strict=True))
    # 57.1 ms, of which 1.2 + 18.1 + 30.2 + 6.4 are parts.
    assert (shown["Run"], ternary[1]) == ("dense", "ternary")
    assert [shown[f"{part} (ms)"] for part in ("Step", "Data", "Forward")] == [
        "57.10", "1.20", "18.10",
    ]  # fmt: skip
    assert [shown[f"{part} (ms)"] for part in ("Backward", "Optimizer", "Rest")] == [
        "30.20", "6.40", "1.20",
    ]  # fmt: skip
    assert shown["Memory (MB)"] == "812.0"
    note = "Peak for MFU: float32 matmul 0.19 TFLOP/s, measured (dense, ternary)."
    assert sum(note in line for line in lines) == 1
    assert any(line.endswith("continued, evolved).") for line in lines)


def test_a_run_without_events_evolution_samples_or_run_files_is_reported(
    metrics: Path, tmp_path: Path
) -> None:
    shutil.rmtree(metrics / "evolve")
    for path in metrics.rglob("run.json"):
        path.unlink()
    write_rows(metrics / "pretrain/ternary/events.csv", ("step", "kind", "detail"), [])
    content = evaluation()
    del content["samples"], content["floors"], content["run"]
    content["models"] = {"dense": content["models"]["dense"]}
    del content["models"]["dense"]["reference"]
    write(metrics / "evaluate" / "metrics.json", content)
    files = write_report(metrics, out_dir=tmp_path / "out")
    text = files.page.read_text(encoding="utf-8")
    assert "No run had a loss spike, a rollback or an early stop." in text
    assert "<h2>Evolution</h2>" not in text
    assert "<h2>Samples</h2>" not in text
    assert text.count("not measured</span>") == 5


def test_hostile_names_and_lost_losses_do_not_break_figures_or_tables(
    metrics: Path, tmp_path: Path
) -> None:
    name = '<b>"a|b" & $x$ `c`'
    content = evaluation()
    content["models"][name] = content["models"]["ternary"]
    write(metrics / "evaluate" / "metrics.json", content)
    steps = metrics / "pretrain" / "ternary" / "steps.csv"
    head, *rows = steps.read_text().splitlines()
    lost = [",".join([*row.split(",")[:2], "nan", *row.split(",")[3:]]) for row in rows[700:]]
    steps.write_text("\n".join([head, *rows[:700], *lost]) + "\n")
    files = write_report(metrics, out_dir=tmp_path / "out")
    for figure in files.figures:
        ElementTree.parse(figure)
    tables = [line for line in files.markdown.read_text().splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables if "&lt;b>" in line]
    assert widths == [10, 8]


def test_an_earlier_report_is_replaced_and_its_neighbours_stay(report: ReportFiles) -> None:
    out_dir = report.page.parent
    assert set((out_dir / "figures").iterdir()) == set(report.figures)
    assert (out_dir / "config.yaml").read_text() == "seed: 1\n"
    assert {path.name for path in out_dir.iterdir()} == {
        "config.yaml", "figures", report.page.name, report.markdown.name, report.summary.name,
    }  # fmt: skip


def test_a_failing_stage_leaves_no_half_report(metrics: Path, tmp_path: Path) -> None:
    (metrics / "pack" / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError):
        write_report(metrics, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
