"""Scripts that check packlight's claims, one a claim, each writing its table to `benchmarks/results/`."""
