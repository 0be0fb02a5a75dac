"""A controlled study of how networks select their normalizers."""
