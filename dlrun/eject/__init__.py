"""format=python: a run as a script that needs no dlrun. Nothing imports it but the table of export formats."""
