"""The process that remembers: LMDB and every file the user sees."""
