"""Bayes nets: graphs, conditional distributions and exact inference.

Also files, classic nets, and trees learnt from data.
"""

from ppl_dgm.conditionals.tables import (
    Function,
    LinearGaussian,
    Logistic,
    Neural,
    NodeConditional,
    Table,
)
from ppl_dgm.families.bayesnet.bif import read_bif, write_bif
from ppl_dgm.families.bayesnet.chow_liu import chow_liu
from ppl_dgm.families.bayesnet.drawing import draw_graph
from ppl_dgm.families.bayesnet.independent import IndependentBernoulli
from ppl_dgm.families.bayesnet.net import BayesNet, markov_chain, naive_bayes
from ppl_dgm.families.bayesnet.networks import alarm, asia, burglary, sachs_graph

__all__ = [
    "BayesNet",
    "Function",
    "IndependentBernoulli",
    "LinearGaussian",
    "Logistic",
    "Neural",
    "NodeConditional",
    "Table",
    "alarm",
    "asia",
    "burglary",
    "chow_liu",
    "draw_graph",
    "markov_chain",
    "naive_bayes",
    "read_bif",
    "sachs_graph",
    "write_bif",
]
