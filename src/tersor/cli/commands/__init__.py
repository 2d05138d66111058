"""One module per command: `command`, whose docstring and options are its help, and `EPILOG`, its examples."""
