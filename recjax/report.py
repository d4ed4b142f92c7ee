"""Compares finished runs: `python -m recjax.report WORKDIR [WORKDIR...]`."""

import io
import pathlib
import sys
from collections.abc import Sequence

import rich.console
from absl import app, flags, logging

from recjax.errors import CheckpointError, ConfigError, DataError, ReportError
from recjax.flags import parse_words
from recjax.reports.collect import load_results
from recjax.reports.write import Report, protocol_text, write_report

_BASELINE = flags.DEFINE_string(
    "baseline", "", "The arm that the others are compared with. Default: the first."
)
_METRICS = flags.DEFINE_list(
    "metrics",
    [],
    "What is compared, such as recall@10,ndcg@10. Default: what chose the checkpoints.",
)
_OUT = flags.DEFINE_string(
    "out", "", "The folder to write to. Default: report/ in the first WORKDIR."
)
_PAGE = flags.DEFINE_boolean("page", True, "Write page.html and figures besides the tables.")


def main(argv: Sequence[str]) -> None:
    """Flags in, one function call out."""
    logging.set_verbosity(logging.WARNING)
    workdirs = list(argv[1:])
    try:
        if not workdirs:
            raise ReportError("which runs? name a sweep's, a run's or several --workdir")
        results = load_results(workdirs)
        report = write_report(
            results,
            _OUT.value or pathlib.Path(workdirs[0]) / "report",
            baseline=_BASELINE.value,
            metrics=_METRICS.value,
            page=_PAGE.value,
        )
    except (ReportError, ConfigError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    _show(results.title, protocol_text(results), report)


def _show(title: str, protocol: str, report: Report) -> None:
    """Prints the tables, each as wide as it needs to be, and what was written."""
    terminal = rich.console.Console()
    wide = rich.console.Console(
        file=io.StringIO(),
        width=1000,
        force_terminal=terminal.is_terminal,
        color_system="standard" if terminal.is_terminal else None,
    )
    print(f"{title}\n{protocol}\n")
    for table in report.tables:
        with wide.capture() as capture:
            wide.print(table.terminal())
        print("\n".join(line.rstrip() for line in capture.get().splitlines()))
        print(f"{table.caption}\n" if table.caption else "")
    for note in report.notes:
        print(f"note: {note}")
    print(f"Written to {report.files[0].parent}: {', '.join(path.name for path in report.files)}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_words)
