"""`python -m fairjax` is the command `fairjax`."""

from fairjax.cli import main

if __name__ == "__main__":
    main()
