"""What the user set, wherever it stands: options, environment, prompt files, settings files and keys."""
