"""Say where the report is and what it found: the last lines of `make repro`."""

from pathlib import Path

from root import ROOT
from trilith.files import read_json
from trilith.reporting import closing_lines

if __name__ == "__main__":
    summary = read_json(Path(ROOT / "reports" / "summary.json"), made_by="report")
    print("\n".join(closing_lines(summary, page=Path("reports/report.html"))))
