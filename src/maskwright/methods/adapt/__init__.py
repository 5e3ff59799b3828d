"""Methods for a labelled source domain."""
