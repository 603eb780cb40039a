"""The life of a session: record, lease, live session, and the manager that owns them all."""
