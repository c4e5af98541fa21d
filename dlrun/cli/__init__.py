"""The command line: commands, exit codes, help, lists of runs. No module here imports torch at its top."""
