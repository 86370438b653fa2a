"""The command line, a module for each family of commands; each adds its parsers and says what runs."""
