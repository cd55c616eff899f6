"""What the subcommands do: read, compute, write; each returns a report and prints nothing."""
