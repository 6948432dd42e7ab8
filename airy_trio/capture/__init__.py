"""A row changed: which object it belongs to, what the object's rows are now, and where to go on reading."""
