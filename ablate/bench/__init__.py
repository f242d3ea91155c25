"""What a machine does in a second of this package's own work: measured without Ray, in one file, for `ablate plan`."""
