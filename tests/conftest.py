"""Settings of every test."""

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)  # the same examples, however busy the machine is
settings.load_profile("steady")
