"""Stage report: the metrics of all stages as one HTML page, one Markdown page and a summary."""

import logging

from stage import Stage, run
from trilith.files import read_json
from trilith.reporting import closing_lines, write_report

log = logging.getLogger("trilith.pipelines.report")


def main(stage: Stage) -> None:
    """Write the report and say what it found."""
    files = write_report(stage.input("metrics"), out_dir=stage.out_dir)
    summary = read_json(files.summary, made_by="report")
    for line in closing_lines(summary, page=files.page):
        log.info(line)


if __name__ == "__main__":
    run("report", main)
