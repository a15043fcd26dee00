"""What everything stands on: errors, files, signals, this machine."""
