"""One run from its request to its result: build, check, train, record, resume."""
