"""Methods for a few masks and many photographs."""
