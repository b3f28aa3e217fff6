"""What every process needs of the operating system: files, signals, pipes, logs."""
