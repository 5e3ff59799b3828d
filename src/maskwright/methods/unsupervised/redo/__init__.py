"""ReDO: the method and its options, its training, its networks, and its losses."""
