"""Protocol revisions: what each can do, and where a message goes. Pure."""
