"""What a run needs from the machine: error messages, complete files, locks, signals, installed packages."""
