"""Builds mploader. All of the package's metadata is in setup.cfg.

The one extension is optional: it is built where a C compiler and the headers of libjpeg-turbo are (Debian:
libjpeg62-turbo-dev), and left out without harm elsewhere. It makes crops of JPEGs cheaper.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("mploader.images._region", ["mploader/images/_region.c"], libraries=["jpeg"], optional=True)
    ]
)
