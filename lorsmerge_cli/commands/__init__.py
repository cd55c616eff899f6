"""One file per subcommand: parse, call one operation, print its report."""
