"""What methods share that learn from segments of photographs: regions, their prototypes, and read-outs by these."""
