#!/bin/sh
# A compiler for tests that does what its component says, which is a script: the real one cannot be
# made to fail in all the ways in which a compiler may.
exec sh
