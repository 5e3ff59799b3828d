"""A fuzzer of the project's own: small valid files, changed at random, through the command line and Python.

    python -m benchmarks.fuzz --count 10000 --seed 0 --jobs 2
    python -m benchmarks.fuzz --only masks:17 --keep found
    python -m benchmarks.fuzz --kills 40

`mutations` changes files, `inputs` makes them, `kinds` says where each lies and what reads it, `verbs` are the ways in,
`trial` classes what comes of one mutation, `pool` watches the workers, `kills` ends runs at random moments."""
