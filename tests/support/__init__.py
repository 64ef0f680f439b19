"""What tests share: the command, servers, and the process that forks."""
