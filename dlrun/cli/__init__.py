"""What is typed: the table of commands, exit codes, help, lists of runs. Nothing here imports torch at its top."""
