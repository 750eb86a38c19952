"""The CRMA specification: Markdown files with numbered clauses. ``spec/README.md`` says how to read them."""
