"""The shortest whole ports, as a tutorial: README.md says in which order to read and to write one."""
