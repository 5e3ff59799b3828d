"""What training draws: views, crops, labels, mixes, samplers."""
