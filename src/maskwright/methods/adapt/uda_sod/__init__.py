"""UDA-SOD: the method, its options, its composites, how sure it is of the target, and its losses."""
