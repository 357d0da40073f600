"""Cost of generators and the search for the best configuration under a budget."""

from gancomp.search.budget import Budget, Limits
from gancomp.search.cost import CostModel, LayerCost, Profile, profile_module
from gancomp.search.evolution import SearchOptions
from gancomp.search.loop import SearchResult, check_reachable, search
from gancomp.search.pareto import pareto_front

__all__ = [
    "Budget",
    "CostModel",
    "LayerCost",
    "Limits",
    "Profile",
    "SearchOptions",
    "SearchResult",
    "check_reachable",
    "pareto_front",
    "profile_module",
    "search",
]
