"""What comes in: folders, labels, benchmark layouts, views with recorded geometry, the doctor."""
