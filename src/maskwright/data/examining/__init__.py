"""The doctor, and what is asked before a verb starts."""
