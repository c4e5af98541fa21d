"""Reports of one run: on the terminal, in report.html, as figures."""
