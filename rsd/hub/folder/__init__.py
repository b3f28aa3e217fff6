"""The watched folder: from file events to files that are ready."""
