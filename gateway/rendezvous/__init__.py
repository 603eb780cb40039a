"""Where agents arrive."""
