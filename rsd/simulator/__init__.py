"""A vLLM server and a grader, played on this machine."""
