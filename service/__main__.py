"""`python -m service` is `tamis`."""

from service.cli import main

if __name__ == "__main__":
    main()
