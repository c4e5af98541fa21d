"""metrics.csv in the run folder: a row an epoch, for a spreadsheet or pandas."""

import csv
import io
from itertools import chain

from dlrun.core.files import GrowingFile, write_atomically
from dlrun.runs.loggers.base import LoggedRun, Logger

_METRICS_CSV = "metrics.csv"


class CSVLogger(Logger):
    """Write a row an epoch, with the columns of metrics.jsonl; "nan" for values that are not finite."""

    run: LoggedRun
    columns: list[str]
    rows: list[dict[str, float]]

    def start(self, run: LoggedRun) -> None:
        """Write the rows up to the checkpoint of a resumed run: those of metrics.jsonl, to the bit."""
        self.run = run
        self.rows = list(run.rows)
        self._write_all()

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Append the row of an epoch, which is on the disk when this returns; other metrics have no row."""
        if "epoch" not in values:
            return
        # Timings differ from run to run.
        row = {key: value for key, value in values.items() if not key.startswith("time/")}
        self.rows.append(row)
        if set(row) <= set(self.columns):
            self.file.write(self._format([row]))
            self.file.flush()
        else:
            # A metric that the rows before do not have.
            self._write_all()

    def _write_all(self) -> None:
        self.columns = list(dict.fromkeys(chain.from_iterable(self.rows)))
        text = self._format(self.rows, header=True) if self.columns else ""
        path = self.run.folder / _METRICS_CSV
        with self.run.disk_problems.tolerate(_METRICS_CSV):
            write_atomically(path, text.encode())
        self.file = GrowingFile(path, _METRICS_CSV, self.run.disk_problems)

    def _format(self, rows: list[dict[str, float]], header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        for row in rows:
            writer.writerow({key: _format_number(value) for key, value in row.items()})
        return text.getvalue()


def _format_number(value: float) -> str:
    # metrics.jsonl has one word for all that is not finite, and a resumed run knows no more.
    return repr(value) if value - value == 0 else "nan"
