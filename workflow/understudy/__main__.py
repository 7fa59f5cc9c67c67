"""`python -m understudy COMMAND …`: what the workflow's rules call, and a few commands for people."""

from understudy.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
