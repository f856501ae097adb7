"""Classic Bayes nets, typed as data."""

from pathlib import Path

from ppl_dgm.conditionals.tables import Table
from ppl_dgm.families.bayesnet.bif import read_bif
from ppl_dgm.families.bayesnet.net import BayesNet

__all__ = ["alarm", "asia", "burglary", "sachs_graph"]

YES_NO = ("yes", "no")

SACHS_EDGES = (
    ("PKC", "PKA"), ("PKC", "Raf"), ("PKC", "Mek"), ("PKC", "Jnk"), ("PKC", "P38"),
    ("PKA", "Raf"), ("PKA", "Mek"), ("PKA", "Erk"), ("PKA", "Akt"), ("PKA", "Jnk"), ("PKA", "P38"),
    ("Raf", "Mek"), ("Mek", "Erk"), ("Erk", "Akt"),
    ("Plcg", "PIP3"), ("Plcg", "PIP2"), ("PIP3", "PIP2"),
)  # fmt: skip


def binary(yes: list | float, parents: tuple[str, ...] = ()) -> Table:
    """Make the table of a variable with two states.

    The states are yes and no; the probabilities are of yes, nested by parents.
    """
    return Table(with_no(yes), parents)


def with_no(yes: list | float) -> list:
    """Probabilities of yes, each made a row (yes, no)."""
    return [with_no(part) for part in yes] if isinstance(yes, list) else [yes, 1 - yes]


def asia() -> BayesNet:
    """Make the Asia network of lung diseases.

    Dyspnoea after a visit to Asia (Lauritzen and Spiegelhalter 1988, section 2.1). The states are
    yes and no.

    Example:
        >>> round(asia().query(["dysp"])[0].item(), 4)
        0.436
    """
    nodes = {
        "asia": binary(0.01),
        "tub": binary([0.05, 0.01], ("asia",)),
        "smoke": binary(0.5),
        "lung": binary([0.1, 0.01], ("smoke",)),
        "bronc": binary([0.6, 0.3], ("smoke",)),
        "either": binary([[1.0, 1.0], [1.0, 0.0]], ("lung", "tub")),
        "xray": binary([0.98, 0.05], ("either",)),
        "dysp": binary([[0.9, 0.8], [0.7, 0.1]], ("bronc", "either")),
    }
    return BayesNet(nodes, dict.fromkeys(nodes, YES_NO))


def alarm() -> BayesNet:
    """Make the ALARM network of patient monitoring.

    Monitoring of an anaesthetised patient (Beinlich et al. 1989): 37 variables, 46 arcs, 509 free
    parameters.

    The figures are those of the Bayesian network repository of bnlearn (Scutari 2010).

    Example:
        >>> alarm().query(["HYPOVOLEMIA"], {"CVP": "LOW", "BP": "LOW"})
        tensor([0.1517, 0.8483])
    """
    return read_bif(Path(__file__).with_name("alarm.bif"))


def burglary() -> BayesNet:
    """Make Pearl's network of a burglar alarm.

    The numbers are those of Russell and Norvig (2003, figure 14.2). The states are yes and no.

    Example:
        >>> calls = {"john_calls": "yes", "mary_calls": "yes"}
        >>> round(burglary().query(["burglary"], calls)[0].item(), 3)
        0.284
    """
    nodes = {
        "burglary": binary(0.001),
        "earthquake": binary(0.002),
        "alarm": binary([[0.95, 0.94], [0.29, 0.001]], ("burglary", "earthquake")),
        "john_calls": binary([0.9, 0.05], ("alarm",)),
        "mary_calls": binary([0.7, 0.01], ("alarm",)),
    }
    return BayesNet(nodes, dict.fromkeys(nodes, YES_NO))


def sachs_graph() -> BayesNet:
    """Make the protein-signalling network, with uniform tables.

    The consensus graph of Sachs et al. (2005, figure 2), with three levels for each variable; the
    tables are to be fitted.

    Example:
        >>> sachs_graph().num_free_parameters
        178
    """
    names = dict.fromkeys(name for edge in SACHS_EDGES for name in edge)
    return BayesNet.from_edges(dict.fromkeys(names, 3), SACHS_EDGES)
