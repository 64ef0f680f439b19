"""What the user set: options, environment variables, prompt files, settings files and keys."""
