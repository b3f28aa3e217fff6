"""What travels between processes and reaches the disk: nouns, facts, messages."""
