"""The decisions of the hub. Pure: no clock, no file, no socket, no process."""
