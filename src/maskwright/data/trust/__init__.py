"""Files that are read again: records, checksums, identities, the ledger."""
