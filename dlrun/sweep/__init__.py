"""Many runs as one experiment: the plan, the ledger, the engines that run jobs, one honest comparison."""
