"""From image tags to maps, label maps and a network."""
