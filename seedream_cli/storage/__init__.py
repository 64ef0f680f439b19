"""Files: whole images, kept replies, names and folders. Errors say what they mean for the money."""
