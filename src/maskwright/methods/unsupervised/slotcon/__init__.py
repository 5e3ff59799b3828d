"""SlotCon: the method, its options and training, and its losses."""
