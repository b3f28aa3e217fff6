"""Which candidates are made, and when an image is finished. Pure."""
