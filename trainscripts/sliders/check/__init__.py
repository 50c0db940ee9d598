"""What this machine can do: the check command. It asks the machine, then says what was found and what to do about it."""
