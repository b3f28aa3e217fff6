"""What the hub reports, and what it sees of its host."""
