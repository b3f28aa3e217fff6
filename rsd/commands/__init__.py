"""One file a command: they read, they ask, they print."""
