"""PASS: the method, its options, its network, its three training stages, and how it names pixels."""
