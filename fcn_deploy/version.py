"""The version of fcn-deploy, in one place: the wheel and every artifact's metadata read it from here."""

__version__ = "0.1.0"
