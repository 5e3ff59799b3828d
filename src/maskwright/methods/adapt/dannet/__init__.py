"""DANNet: day to night in one stage."""
