"""Every module that defines clauses, in the order in which clauses may depend on each other."""

from mcframe.testing import gistnet as gistnet
