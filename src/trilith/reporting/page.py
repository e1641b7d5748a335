"""The stage `report`: metric files in; a page, its Markdown twin, figures and a summary out."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from trilith.files import replacing, write_json
from trilith.reporting import figures_models, figures_training, tables
from trilith.reporting.drawing import Drawing, Palette, figure_style, palette
from trilith.reporting.findings import check_targets, findings, floor_finding, target_finding
from trilith.reporting.inputs import Evaluation, Inputs, packed_parts, read_inputs
from trilith.reporting.tables import Table
from trilith.reporting.untrusted import fenced, markdown_cell, visible

TEMPLATES = Path(__file__).parent / "templates"


class ReportFiles(NamedTuple):
    """Where the report was written."""

    page: Path
    markdown: Path
    figures: tuple[Path, ...]
    summary: Path


class Section(NamedTuple):
    """A part of the report: its tables and figures in reading order."""

    anchor: str
    title: str
    text: str
    items: tuple[Table | Drawing, ...]


class Completion(NamedTuple):
    """What one model made of a prompt."""

    model: str
    text: str


def write_report(metrics_dir: Path, *, out_dir: Path) -> ReportFiles:
    """Read the metrics of all stages and write the report. Same inputs, same bytes.

    Args:
        metrics_dir: holds curate/, tokenize/, pretrain/, evolve/ (optional), pack/, evaluate/.
        out_dir: gets report.html, report.md, summary.json and figures/; other files stay.

    Raises:
        FileNotFoundError: a required metrics file is absent; the text names its stage.
        ValueError: a metrics file is damaged; the text names the file and what is wrong.
    """
    inputs = read_inputs(metrics_dir)
    with figure_style():
        sections = _sections(inputs, looks=_looks(inputs))
    context = {
        "sections": sections,
        "prompts": _by_prompt(inputs.evaluation),
        **_opening(inputs.evaluation),
    }
    out_dir = Path(out_dir)
    files = ReportFiles(
        page=out_dir / "report.html",
        markdown=out_dir / "report.md",
        figures=_write_figures(sections, folder=out_dir / "figures"),
        summary=out_dir / "summary.json",
    )
    _write_text(files.page, _render("report.html.jinja", context=context))
    _write_text(files.markdown, _render("report.md.jinja", context=context))
    write_json(files.summary, _summary(inputs.evaluation))
    return files


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "models": evaluation.models,
        "floors": evaluation.floors,
        "run": evaluation.run,
    }


def _opening(evaluation: Evaluation) -> dict[str, Any]:
    headline, *more = findings(evaluation.models)
    more += [
        floor_finding(evaluation.models, floors=evaluation.floors),
        target_finding(check_targets(evaluation.models)),
    ]
    facts = [
        f"{label} {tables.number(evaluation.run[key])}"
        for key, label in (
            ("corpus", "corpus"),
            ("model", "model"),
            ("num_parameters", "parameters"),
            ("test_tokens", "test tokens"),
            ("device", "device"),
        )
        if evaluation.run.get(key) is not None
    ]
    return {"headline": headline, "findings": more, "facts": facts}


def _looks(inputs: Inputs) -> Palette:
    return palette(
        [
            *(run.name for run in inputs.pretrain),
            *inputs.evaluation.models,
            *(run.name for run in inputs.evolution),
            *inputs.weights,
        ]
    )


def _sections(inputs: Inputs, *, looks: Palette) -> tuple[Section, ...]:
    sections = (
        _result_section(inputs, looks=looks),
        _data_section(inputs),
        _pretraining_section(inputs, looks=looks),
        _evolution_section(inputs, looks=looks),
        _packed_section(inputs, looks=looks),
        _run_section(inputs),
    )
    return tuple(section for section in sections if section.items)


def _result_section(inputs: Inputs, *, looks: Palette) -> Section:
    evaluation = inputs.evaluation
    return Section(
        "result",
        "Result",
        "",
        _present(
            tables.target_table(check_targets(evaluation.models)),
            tables.quality_table(evaluation),
            figures_models.draw_quality_against_size(evaluation.models, looks=looks),
            tables.size_table(evaluation.models, run=evaluation.run),
        ),
    )


def _data_section(inputs: Inputs) -> Section:
    curate = inputs.curate
    text = ""
    if "bytes_in" in curate and "bytes_out" in curate:
        text = (
            f"Curation kept {curate['documents_out']:,.0f} of {curate['documents_in']:,.0f} "
            f"documents, {curate['bytes_out'] / 1e6:,.1f} of {curate['bytes_in'] / 1e6:,.1f} MB."
        )
    items = _present(figures_models.draw_funnel(curate), tables.split_table(inputs.tokenize))
    return Section("data", "Data", text, items)


def _pretraining_section(inputs: Inputs, *, looks: Palette) -> Section:
    runs, stage = inputs.pretrain, "pretraining"
    events = tables.event_table(runs)
    loss = figures_training.draw_pretraining_loss(
        runs, floors=inputs.evaluation.floors, looks=looks
    )
    return Section(
        stage,
        "Pretraining",
        "" if events else "No run had a loss spike, a rollback or an early stop.",
        _present(
            loss,
            tables.training_table(runs),
            tables.step_table(
                runs, stage_runs={r.name: inputs.run_of(f"pretrain/{r.name}") for r in runs}
            ),
            events,
            figures_training.draw_optimization(runs, stage=stage, looks=looks),
            figures_training.draw_quantization(runs, stage=stage, looks=looks),
            figures_training.draw_speed(runs, stage=stage, looks=looks),
        ),
    )


def _evolution_section(inputs: Inputs, *, looks: Palette) -> Section:
    runs, stage = inputs.evolution, "evolution"
    items: tuple[Table | Drawing, ...] = ()
    if runs:
        items = _present(
            figures_training.draw_evolution_loss(runs, looks=looks),
            figures_training.draw_divergence(runs, looks=looks),
            tables.step_table(runs, stage_runs={r.name: inputs.run_of("evolve") for r in runs}),
            tables.event_table(runs),
            figures_training.draw_optimization(runs, stage=stage, looks=looks),
            figures_training.draw_quantization(runs, stage=stage, looks=looks),
            figures_training.draw_speed(runs, stage=stage, looks=looks),
        )
    items += _present(tables.evolve_table(inputs.evolve))
    text = "A dense checkpoint, brought onto a coarser grid step by step, beside its dense control."
    return Section(stage, "Evolution", text, items)


def _packed_section(inputs: Inputs, *, looks: Palette) -> Section:
    items = _present(
        figures_models.draw_size_breakdown(packed_parts(inputs.pack)),
        tables.pack_table(inputs.pack),
        figures_models.draw_weight_histograms(inputs.weights, looks=looks),
        figures_models.draw_code_histograms(inputs.codes, looks=looks),
    )
    return Section("packed", "Packed models", "", items)


def _run_section(inputs: Inputs) -> Section:
    items = _present(tables.stage_table(inputs), tables.environment_table(inputs.evaluation.run))
    return Section("run", "Run and environment", "", items)


def _present(*items: Table | Drawing | None) -> tuple[Table | Drawing, ...]:
    return tuple(item for item in items if item is not None)


def _by_prompt(evaluation: Evaluation) -> dict[str, list[Completion]]:
    prompts: dict[str, list[Completion]] = {}
    for model, samples in evaluation.samples.items():
        for sample in samples:
            prompts.setdefault(sample.prompt, []).append(Completion(model, sample.completion))
    return prompts


def _write_figures(sections: Iterable[Section], *, folder: Path) -> tuple[Path, ...]:
    drawings = [item for section in sections for item in section.items if isinstance(item, Drawing)]
    with replacing(folder) as partial:
        partial.mkdir()
        for drawing in drawings:
            _write_text(partial / f"{drawing.caption.name}.svg", drawing.svg)
    return tuple(folder / f"{drawing.caption.name}.svg" for drawing in drawings)


def _render(template: str, *, context: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"visible": visible, "fenced": fenced, "cell": markdown_cell}
    environment.filters |= {"inline_svg": _inline_svg, "breakable": _breakable}
    environment.tests["drawing"] = lambda item: isinstance(item, Drawing)
    return environment.get_template(template).render(context)


def _inline_svg(drawing: Drawing) -> Markup:
    # Safe: matplotlib escapes every text in it, and we wrote the rest.
    return Markup(drawing.svg)


def _breakable(text: str) -> Markup:
    # Long names such as dense_continued_prime7 may wrap after an underscore.
    return escape(visible(text)).replace("_", Markup("_<wbr>"))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
