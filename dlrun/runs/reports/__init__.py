"""Parts that every report is made of: the console, the HTML page, plots."""
