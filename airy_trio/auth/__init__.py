"""Authentication: credentials in, a user with a grant or a refusal out."""
