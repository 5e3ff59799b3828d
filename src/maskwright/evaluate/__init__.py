"""What judges: confusion, matching, metrics, protocols.

Its modules are imported as `from maskwright.evaluate.protocols import ...`. The attribute `evaluate` of the package
`maskwright` is the function of the Python surface, see there.
"""
