"""From a changed row to a changed object: which object it belongs to, its current rows, and the next resume point."""
