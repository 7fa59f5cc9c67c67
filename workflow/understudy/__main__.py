"""`python -m understudy COMMAND …`: what the workflow's rules call, and a few commands for people."""

from understudy import process
from understudy.cli import main

if __name__ == "__main__":
    process.limit_libraries()
    process.leave(main())
