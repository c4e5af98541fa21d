"""Ways to the same numbers in less time: compilation, threads, CUDA graphs."""
