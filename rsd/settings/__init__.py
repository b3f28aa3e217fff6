"""Settings: their types, how they are read and validated, the words about them."""
