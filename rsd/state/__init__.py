"""What is stored, for all who read it: LMDB, records, result documents."""
