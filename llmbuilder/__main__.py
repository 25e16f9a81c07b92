"""`python -m llmbuilder` is the `llmbuilder` command."""

from llmbuilder.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
