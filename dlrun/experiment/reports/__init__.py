"""What a run shows at its end: the terminal, report.html, figures."""
