"""One call to a model server, and the class of its error."""
