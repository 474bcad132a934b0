"""Reading: files, containers and formats, up to a Conversation."""
