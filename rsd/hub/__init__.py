"""The process that thinks: watcher, throttle, supervisor and the pure brain."""
