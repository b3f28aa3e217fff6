"""The processes that call models: generators and graders."""
