"""The question to the grader, and its answer read as a score."""
